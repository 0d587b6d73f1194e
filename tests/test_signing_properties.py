"""`verify` never raises, and accepts nothing but what was signed: hypothesis on headers, bodies, secrets and times."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from director.signing import SignedRequest, Verdict, claims, presets, scheme, secret_problem, sign, verify
from tests.test_signing import PRIVATES, SECRETS

NOW = 1_700_000_000.0
HMAC = {"header": "X-Sig", "signed_content": "{method}{path}{url}{id}{timestamp}{body}", "id_header": "X-Id",
        "timestamp_header": "X-Time"}  # fmt: skip
SCHEMES = {name: scheme(HMAC if name == "hmac" else name) for name in presets()}
SVIX = ("svix-id", "svix-timestamp", "svix-signature")
ANY_TEXT = st.text(st.characters(), max_size=30)
"""Lone surrogates too: an environment variable that is not UTF-8 holds them."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "type", "event", "webhookTimestamp", "0", ""]) | ANY_TEXT, inner, max_size=4
        )
    ),
    max_leaves=10,
)
BODIES = st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.lists(st.sampled_from([b"payload=", b"%7B%7D", b"&", b"id=1", b"%ff", b"+", b"{", b"["]), max_size=6).map(
        b"".join
    ),
    st.integers(0, 200_000).map(lambda depth: b"[" * depth),
    st.sampled_from([b"", b"null", b"\xef\xbb\xbf{}", b'{"webhookTimestamp":1700000000000}']),
)
DIGITS = st.sampled_from(
    ["1700000000", "1700000000000", "", "-1", "1e9", "९", "9" * 16, "9" * 9000, " 1700000000", "nan"]
)
MACS = st.binary(max_size=70).map(lambda mac: mac.hex()) | st.binary(max_size=70).map(
    lambda mac: base64.b64encode(mac).decode()
)


def names(made):
    """Return what the headers of a scheme are called, and some that it does not read."""
    own = (made.header, *made.header_aliases, made.timestamp_header, made.id_header, made.event_header)
    return [name for name in own if name] + ["Content-Type", *SVIX]


def likely(made):
    """Make values that look like those of a scheme."""
    element = st.builds("{}={}".format, st.just(made.timestamp_element or "t"), DIGITS)
    signature = st.builds("{}{}".format, st.sampled_from([made.prefix, "", "v1=", "sha256="]), MACS | ANY_TEXT)
    several = st.lists(element | signature, max_size=40).map((made.separator or ",").join)
    types = st.sampled_from(["application/json", "application/x-www-form-urlencoded; charset=x"])
    text = st.one_of(several, signature, DIGITS, types, ANY_TEXT, st.just("x" * 100_000))
    return text | st.binary(max_size=30) | text.map(lambda it: it.encode("utf-8", "surrogatepass"))


def cased(name):
    return st.sampled_from([name, name.lower(), name.upper(), name.lower().encode()])


@st.composite
def requests(draw, preset):
    """Make a request: headers at random, or a signed one's with some added, repeated, changed or left out."""
    made, body = SCHEMES[preset], draw(BODIES)
    url = draw(st.sampled_from(["/hooks/x", "https://a.example/hooks/x?q=1", "", "☃", "//"]) | ANY_TEXT)
    secret = PRIVATES.get(preset) or SECRETS.get(preset, "s3cret")
    pairs = []
    if draw(st.booleans()):
        try:
            pairs = sign(made, secret, SignedRequest("POST", url, [], body), now=NOW)
        except ValueError:  # a URL that is no Latin
            pairs = []
    pairs = [pair for pair in pairs if draw(st.integers(0, 9))]
    more = st.tuples(st.sampled_from(names(made)).flatmap(cased) | ANY_TEXT | st.binary(max_size=9), likely(made))
    pairs = draw(st.permutations(pairs + draw(st.lists(more, max_size=5))))
    return SignedRequest(draw(st.sampled_from(["POST", "", "é", "☃"])), url, pairs, body)


NOWS = st.just(NOW) | st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(10**20), 10**20)


@pytest.mark.parametrize("preset", SCHEMES)
@settings(max_examples=30, deadline=None)
@given(data=st.data(), now=NOWS)
def test_verify_never_raises(preset, data, now):
    made, request = SCHEMES[preset], data.draw(requests(preset))
    right = SECRETS.get(preset, "s3cret")
    secrets = data.draw(
        st.just([right]) | st.just(["", "x", right]) | st.lists(st.none() | ANY_TEXT, max_size=3) | ANY_TEXT
    )
    verdict = verify(made, secrets, request, now=now)
    assert isinstance(verdict, Verdict)
    assert verdict.ok is (verdict.reason == "ok") is (verdict.secret is not None)
    assert bool(verdict.detail) is not verdict.ok
    named = (verdict.id, verdict.event, *claims(made, request), *claims(made, request, reads_body=False))
    assert all(len(text) <= 200 and text.isprintable() for text in named)
    assert all(text.isascii() for text in named[::2]), "ids are parts of keys"
    if verdict.ok and made.type != "token":
        assert secrets[verdict.secret] == right or secrets == right, "it was signed with nothing else"


@settings(max_examples=200, deadline=None)
@given(preset=st.sampled_from(list(SCHEMES)), secret=ANY_TEXT, body=BODIES)
def test_a_secret_is_usable_or_says_why_not(preset, secret, body):
    """Given a secret without a problem, then it verifies what it signs; with one, or blank, then nothing."""
    made = SCHEMES[preset]
    if made.type == "ed25519":
        assert secret_problem(made, secret)  # no text that hypothesis finds is a key
        return
    request = SignedRequest("POST", "/", [], body)
    try:
        headers = sign(made, secret, request, now=NOW)
    except ValueError:
        assert secret_problem(made, secret)
        return
    assert secret_problem(made, secret) is None
    verdict = verify(made, [secret], SignedRequest("POST", "/", headers, body), now=NOW)
    if not secret.strip():
        assert verdict.reason == "no_secret"
    else:
        assert verdict.ok or made.timestamp_json
