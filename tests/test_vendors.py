"""Every vendor's own SDK against its preset: what it signs is accepted, and every way to spoil that is refused.

Where an SDK verifies, it is asked too: it must refuse what we refuse, but for what `Vendor.takes` lists.
"""

import base64
import json
import os
import re
import time
from itertools import chain
from pathlib import Path
from typing import get_args

import pytest

from director.signing import Reason, SignedRequest, presets, scheme, verify
from tests.vendors import node
from tests.vendors.sdks import PUBLIC, URL, VENDORS, WHSEC

TYPE = ("Content-Type", "application/json")
OTHERS = {
    "standard": WHSEC.replace("M", "N", 1),
    "gitlab-signing": WHSEC.replace("M", "N", 1),
    "standard-v1a": "whpk_" + base64.b64encode(PUBLIC[::-1]).decode(),
    "discord": PUBLIC[::-1].hex(),
}
"""Secrets that are well written but did not sign."""


def body_at(at):
    """Return a body with what the presets look for; its text is not ASCII."""
    word = {"id": "evt_1", "event_id": "ev_1", "update_id": 1, "type": "invoice.paid", "event": "a.b"}
    return json.dumps({**word, "webhookTimestamp": at * 1000, "note": "é ☃"}, ensure_ascii=False,
                      separators=(",", ":")).encode()  # fmt: skip


def signed(name, at, secret=None):
    vendor, body = VENDORS[name], body_at(at)
    headers = vendor.sign(vendor.secret if secret is None else secret, body, at)
    return SignedRequest("POST", URL, [TYPE, *vendor.more, *headers], body)


def check(name, request, now, secret=None):
    vendor = VENDORS[name]
    return verify(scheme(vendor.scheme), [vendor.secret if secret is None else secret], request, now=now)


def sdk_accepts(name, request, secret=None):
    """Return whether the vendor's SDK accepts a request; any exception refuses it."""
    vendor = VENDORS[name]
    headers = {key.lower(): value for key, value in request.headers}
    try:
        return bool(vendor.accepts(vendor.secret if secret is None else secret, request.body, headers))
    except Exception:
        return False


# What the spoilings do: each takes a scheme and a request, and returns another request or None where it cannot be.


def body(change):
    return lambda made, request: SignedRequest("POST", request.url, request.headers, change(request.body))


def headers(names, change):
    """Replace each of the named headers by the pairs that `change` makes of its name and value."""

    def spoil(made, request):
        wanted = {name.lower() for name in names(made) if name}
        if not wanted & {name.lower() for name, _ in request.headers}:
            return None
        kept = [change(*pair) if pair[0].lower() in wanted else [pair] for pair in request.headers]
        return SignedRequest("POST", request.url, [*chain.from_iterable(kept)], request.body)

    return spoil


def signature_header(change):
    return headers(lambda made: (made.header, *made.header_aliases), change)


def signature(change):
    """Change what stands behind the prefix."""

    def spoil(made, request):
        def change_value(name, value):
            before, found, text = value.rpartition(made.prefix) if made.prefix else ("", "", value)
            return [(name, before + found + change(text))]

        return signature_header(change_value)(made, request)

    return spoil


def another(text):
    return ("1" if text[0] == "0" else "0") + text[1:]


def reencoded(text):
    """Return hex as base64 and the other way."""
    try:
        return base64.b64encode(bytes.fromhex(text)).decode()
    except ValueError:
        return base64.b64decode(text).hex()


def timestamp_header(change):
    return headers(lambda made: (made.timestamp_header, made.timestamp_header and "svix-timestamp"), change)


def timestamp(change):
    """Change the timestamp, in its header or beside the signature; one in the body is the body's."""

    def spoil(made, request):
        if not made.timestamp_element:
            return timestamp_header(lambda name, value: [(name, change(value))])(made, request)
        pattern = rf"\b{made.timestamp_element}=(\d+)"
        element = lambda found: f"{made.timestamp_element}={change(found[1])}"  # noqa: E731
        return signature_header(lambda name, value: [(name, re.sub(pattern, element, value))])(made, request)

    return spoil


def timestamp_element(change):
    """Change a header's items where one of them is the time."""

    def spoil(made, request):
        def change_value(name, value):
            kept = [
                item for item in value.split(made.separator) if not item.startswith(f"{made.timestamp_element}=")
            ]
            return [(name, made.separator.join([*change(made.timestamp_element), *kept]))]

        return signature_header(change_value)(made, request) if made.timestamp_element else None

    return spoil


def identity(change):
    """Change the id where it is signed."""
    return headers(lambda made: (made.id_header, "svix-id") if "{id}" in made.signed_content else (), change)


def twice(name, value):
    return [(name, value), (name, value)]


def other_case_twice(name, value):
    return [(name, value), (name.swapcase(), value)]


def none(name, value):
    return []


# name: how, and the reason: of signatures in hex, in base64, of tokens, and where the time is in the body.
# A token vouches for the sender and not for the body: what changes the body alone passes.
SPOILINGS = {
    "a changed body": (body(lambda it: it.replace(b"paid", b"void")), "bad_signature - ok -"),
    "a body with more": (body(lambda it: it + b"\n"), "bad_signature - ok -"),
    "a truncated body": (body(lambda it: it[:-1]), "bad_signature - ok malformed_timestamp"),
    "a reserialised body": (body(lambda it: json.dumps(json.loads(it)).encode()), "bad_signature - ok -"),
    "a body in another charset": (
        body(lambda it: it.decode().replace("☃", "").encode("latin-1")), "bad_signature - ok malformed_timestamp",
    ),
    "no body": (body(lambda it: b""), "bad_signature - ok malformed_timestamp"),
    "no signature": (signature_header(none), "missing_signature - - -"),
    "an empty signature": (signature(lambda text: ""), "malformed_signature - - -"),
    "an empty header": (signature_header(lambda name, value: [(name, "")]), "malformed_signature - - -"),
    "a signature short of a character": (signature(lambda text: text[:-1]), "malformed_signature - bad_signature -"),
    "a signature short of a byte": (
        signature(lambda text: text[:-2]), "bad_signature malformed_signature bad_signature -",
    ),
    "a signature with more": (signature(lambda text: text + "00"), "bad_signature malformed_signature bad_signature -"),
    "another signature": (signature(another), "bad_signature - - -"),
    "a re-encoded signature": (signature(reencoded), "malformed_signature bad_signature - -"),
    "a signature that is not ASCII": (signature(lambda text: "é" + text[1:]), "malformed_signature - bad_signature -"),
    "a signature of no letters": (signature(lambda text: "☃" * 32), "malformed_signature - bad_signature -"),
    "the signature twice": (signature_header(twice), "malformed_signature - - -"),
    "the signature twice in two cases": (signature_header(other_case_twice), "malformed_signature - - -"),
    "another timestamp": (timestamp(lambda text: str(int(text) - 1)), "bad_signature - - -"),
    "an empty timestamp": (timestamp(lambda text: ""), "malformed_timestamp - - -"),
    "a timestamp that is no number": (timestamp(lambda text: "1e9"), "malformed_timestamp - - -"),
    "a timestamp that is not ASCII": (timestamp(lambda text: "१" + text[1:]), "malformed_timestamp - - -"),
    "no timestamp": (timestamp_header(none), "malformed_timestamp - - -"),
    "the timestamp twice": (timestamp_header(twice), "malformed_timestamp - - -"),
    "no timestamp beside the signature": (timestamp_element(lambda name: []), "malformed_timestamp - - -"),
    "two timestamps beside the signature": (
        timestamp_element(lambda name: [f"{name}=1", f"{name}=2"]), "malformed_timestamp - - -",
    ),
    "no id": (identity(none), "malformed_signature - - -"),
    "the id twice": (identity(twice), "malformed_signature - - -"),
    "another id": (identity(lambda name, value: [(name, "msg_2")]), "bad_signature - - -"),
}  # fmt: skip


def expected(made, reasons):
    """Return the reason for a scheme; "-" stands for the first."""
    first, of_base64, of_tokens, in_bodies = reasons.split()
    if made.type == "token":
        reason = of_tokens
    elif made.timestamp_json and in_bodies != "-":
        reason = in_bodies
    else:
        reason = of_base64 if made.encoding == "base64" else "-"
    return first if reason == "-" else reason


def test_every_preset_has_a_row():
    if not node.MISSING:
        assert {vendor.scheme for vendor in VENDORS.values()} == set(presets()) - {"hmac"}


def test_the_node_sdks_are_asked():
    if node.MISSING and not os.environ.get("CI"):
        pytest.skip(node.MISSING)
    assert not node.MISSING
    assert node.ask("octokit", "sign", "s", b"{}").startswith("sha256=")


@pytest.mark.parametrize("name", VENDORS)
def test_what_the_vendor_signs_is_accepted(name):
    now = int(time.time())
    request = signed(name, now)
    verdict = check(name, request, now)
    assert (verdict.ok, verdict.reason, verdict.secret) == (True, "ok", 0)
    assert VENDORS[name].accepts is None or sdk_accepts(name, request)


@pytest.mark.parametrize("name", VENDORS)
@pytest.mark.parametrize("spoiling", SPOILINGS)
def test_what_is_spoilt_is_refused(name, spoiling):
    now = int(time.time())
    how, reasons = SPOILINGS[spoiling]
    vendor, made = VENDORS[name], scheme(VENDORS[name].scheme)
    spoilt = (
        None if made.type == "token" and spoiling == "a re-encoded signature" else how(made, signed(name, now))
    )
    if spoilt is None:
        return
    verdict = check(name, spoilt, now)
    assert verdict.reason == expected(made, reasons)
    assert verdict.ok is (verdict.reason == "ok") and bool(verdict.detail) is not verdict.ok
    # SDKs get a mapping of headers: they cannot see that one came twice.
    if vendor.accepts and not verdict.ok and "twice" not in spoiling:
        assert sdk_accepts(name, spoilt) is (spoiling in vendor.takes)


@pytest.mark.parametrize("name", VENDORS)
@pytest.mark.parametrize(("reason", "sign"), [("stale", -1), ("future", 1)])
def test_what_is_signed_for_another_time_is_refused(name, reason, sign):
    now, made = int(time.time()), scheme(VENDORS[name].scheme)
    request = signed(name, now + sign * (int(made.tolerance) + 30))
    verdict = check(name, request, now)
    assert verdict.reason == (reason if made.timed else "ok")
    if VENDORS[name].accepts and made.timed:
        assert sdk_accepts(name, request) is (reason in VENDORS[name].takes)


@pytest.mark.parametrize("name", VENDORS)
def test_another_secret_is_refused_and_an_old_one_beside_it_is_not(name):
    now, vendor = int(time.time()), VENDORS[name]
    other = OTHERS.get(vendor.scheme, "another")
    request = signed(name, now)
    assert check(name, request, now, other).reason == "bad_signature"
    assert vendor.accepts is None or not sdk_accepts(name, request, other)
    verdict = verify(scheme(vendor.scheme), [other, vendor.secret], request, now=now)
    assert (verdict.ok, verdict.secret) == (True, 1)


@pytest.mark.parametrize("name", VENDORS)
def test_an_empty_secret_is_refused(name):
    """Given what was signed with an empty secret, where the SDK does that, then no empty secret takes it."""
    now, vendor = int(time.time()), VENDORS[name]
    try:
        request = signed(name, now, "")
    except Exception:  # the SDK refuses to sign so
        request = signed(name, now)
    for secrets in ([], [""], [" "], [None]):
        assert verify(scheme(vendor.scheme), secrets, request, now=now).reason == "no_secret"
    assert not check(name, request, now, scheme(vendor.scheme).secret_prefix or " ").ok, "a prefix is no secret"
    if vendor.accepts:
        assert sdk_accepts(name, request, "") is ("an empty secret" in vendor.takes)


@pytest.mark.parametrize("name", [name for name, it in VENDORS.items() if scheme(it.scheme).separator])
def test_one_right_signature_among_several_is_enough(name):
    """While a secret is rotated, vendors sign with the old and the new one."""
    now, vendor = int(time.time()), VENDORS[name]
    made, right = scheme(vendor.scheme), signed(name, now)

    def with_another(last):
        def change(name, value):
            before, prefix, text = value.rpartition(made.prefix)
            wrong = prefix + another(text)
            several = [prefix + text, wrong] if last else [wrong, prefix + text]
            return [(name, before + made.separator.join(several))]

        return signature_header(change)(made, right)

    for request in (with_another(True), with_another(False)):
        assert check(name, request, now).ok
        assert vendor.accepts is None or sdk_accepts(name, request)


@pytest.mark.parametrize(
    ("name", "other"),
    [("stripe", "v0=00"), ("standardwebhooks", "v2,zzz"), ("svix", "v1a,zzz="), ("gitlab-signing", "v2,")],
)
def test_signatures_of_other_versions_are_passed_over(name, other):
    now = int(time.time())
    made = scheme(VENDORS[name].scheme)
    for several in ("{1}{2}{0}", "{0}{2}{1}"):
        spoil = signature_header(lambda key, it, form=several: [(key, form.format(other, it, made.separator))])
        assert check(name, spoil(made, signed(name, now)), now).ok
        assert sdk_accepts(name, spoil(made, signed(name, now)))
    alone = signature_header(lambda key, it: [(key, f"t={now}{made.separator}{other}")])(made, signed(name, now))
    assert check(name, alone, now).reason == "malformed_signature"


@pytest.mark.parametrize("name", [name for name, it in VENDORS.items() if not scheme(it.scheme).timestamp_json])
def test_an_empty_body_that_is_signed_has_a_right_signature(name):
    """That it is no JSON is for the web process to say (400): the sender is who it claims to be."""
    now, vendor = int(time.time()), VENDORS[name]
    if name == "npm octokit":
        with pytest.raises(ValueError, match="payload required"):
            vendor.sign(vendor.secret, b"", now)
        return
    headers = vendor.sign(vendor.secret, b"", now)
    assert check(name, SignedRequest("POST", URL, [TYPE, *headers], b""), now).ok


@pytest.mark.parametrize("secret", [WHSEC.rstrip("="), WHSEC.removeprefix("whsec_")])
def test_a_secret_of_standard_webhooks_may_lack_its_prefix_or_its_padding(secret):
    now = int(time.time())
    for name in ("standardwebhooks", "svix", "gitlab-signing"):
        request = signed(name, now, secret)
        assert check(name, request, now).ok and check(name, request, now, secret).ok
        assert sdk_accepts(name, signed(name, now), secret)


def test_the_documentation_has_every_reason():
    page = (Path(__file__).parent.parent / "docs" / "webhooks.md").read_text()
    for reason in get_args(Reason):
        assert reason == "ok" or f"`{reason}`" in page
