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
