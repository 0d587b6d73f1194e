"""Who may call without a token."""

import pytest

from director.access import ADMIN, authorize
from director.models import Presented


def ask(**headers):
    given = {"host": "localhost:8000", **headers}
    return authorize(None, peer="127.0.0.1", headers=given, known=Presented())


@pytest.mark.parametrize(
    "origin", ["http://[", "null", "https://evil.example", "http://localhost:8001", "", "http://"]
)
def test_a_foreign_or_malformed_origin_is_refused(origin):
    assert ask(origin=origin).status == 403


def test_a_page_of_its_own_may_call():
    assert ask(origin="http://localhost:8000") == ADMIN
    assert ask() == ADMIN


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.8.9.1", "[::1]:8000", "[::1]"]
)
def test_a_host_that_names_this_machine(host):
    assert ask(host=host) == ADMIN


@pytest.mark.parametrize(
    "host",
    [
        *("", "example.com", "example.com:8000", "localhost.example.com", "0.0.0.0", "[::]", "127.1"),
        *("example.com@localhost", "localhost@example.com", "localhost:x", "localhost:80:80", "[::1", "::1"),
        *("localhost:8000, example.com", "localhost, localhost", "localhost:8000,localhost:8000", "localhost/"),
    ],
)
def test_any_other_host_is_refused(host):
    """Repeats are joined by a comma: a second one is no reason to look at the first only."""
    assert ask(host=host).status == 401


@pytest.mark.parametrize(
    "name",
    [
        *("forwarded", "via", "x-forwarded-for", "x_forwarded_for", "x-original-forwarded-for"),
        *("x-real-ip", "x-client-ip", "x-azure-clientip", "fastly-client-ip", "cf-connecting-ip"),
        *("x-envoy-external-address", "cdn-loop", "x-original-url"),
    ],
)
def test_what_came_through_a_proxy_is_refused(name):
    assert ask(**{name: ""}).status == 401


@pytest.mark.parametrize("token", ["right", "ünî", "a\udcffb"])
def test_the_configured_token_is_compared_by_its_bytes(token):
    """The environment may hold bytes that are no UTF-8; a header has them as latin-1."""
    raw = token.encode("utf-8", "surrogateescape")
    for given, passes in ((raw, True), (raw + b"x", False), (b"\xff", False)):
        headers = {"authorization": f"Bearer {given.decode('latin-1')}"}
        found = authorize(token, peer=None, headers=headers, known=Presented())
        assert (found == ADMIN) == passes
