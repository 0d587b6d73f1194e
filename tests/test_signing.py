"""Signatures: what is accepted, what is refused and why, for every preset and schemes beside them."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from director.signing import SchemeError, SignedRequest, presets, scheme, secret_problem, sign, verify

NOW = 1_700_000_000.0
BODY = b'{"type": "invoice.paid", "id": "evt_1", "webhookTimestamp": 1700000000000}'
WHSEC = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
PRIVATE = Ed25519PrivateKey.from_private_bytes(b"fedcba9876543210fedcba9876543210")
PUBLIC = PRIVATE.public_key().public_bytes_raw()
SECRETS = {
    **{
        "stripe": "whsec_text",
        "standard": WHSEC,
        "gitlab-signing": WHSEC,
        "token": "a-long-token",
        "discord": PUBLIC.hex(),
    },
    "standard-v1a": "whpk_" + base64.b64encode(PUBLIC).decode(),
}
"""What a receiver holds; "s3cret" for all others."""
PRIVATES = {
    "discord": PRIVATE.private_bytes_raw().hex(),
    "standard-v1a": "whsk_" + base64.b64encode(PRIVATE.private_bytes_raw() + PUBLIC).decode(),
}
SCHEMES = {
    **{name: scheme(name) for name in presets() if name != "hmac"},
    "custom": scheme(
        {
            "header": "X-Sig",
            "algorithm": "sha512",
            "encoding": "base64url",
            "signed_content": "{method}:{path}:{timestamp}:{body}",
            "timestamp_header": "X-Time",
            "timestamp_unit": "ms",
        }
    ),
}
SIGNED_BODIES = [name for name, made in SCHEMES.items() if made.type != "token"]
TIMED = [name for name, made in SCHEMES.items() if made.timed]
DATA = Path(__file__).parent / "data"


def signed(name, body=BODY, *, now=NOW, secret=None):
    made = SCHEMES[name]
    request = SignedRequest("POST", "/hooks/x", [("Content-Type", "application/json")], body)
    headers = sign(made, secret or PRIVATES.get(name) or SECRETS.get(name, "s3cret"), request, now=now)
    return SignedRequest("POST", "/hooks/x", [*request.headers, *headers], body)


def check(name, request, *, secrets=None, now=NOW):
    return verify(SCHEMES[name], secrets or [SECRETS.get(name, "s3cret")], request, now=now)


def changed(request, header, change):
    """Return the request with one header's value changed; None removes it."""
    headers = [(key, change(value) if key.lower() == header.lower() else value) for key, value in request.headers]
    kept = [(key, value) for key, value in headers if value is not None]
    return SignedRequest(request.method, request.url, kept, request.body)


@pytest.mark.parametrize("name", SCHEMES)
def test_what_was_signed_is_accepted(name):
    verdict = check(name, signed(name))
    assert (verdict.ok, verdict.reason, verdict.secret) == (True, "ok", 0)


@pytest.mark.parametrize("name", SCHEMES)
def test_an_empty_body_can_be_signed(name):
    verdict = check(name, signed(name, b""))
    assert verdict.ok or (verdict.reason == "malformed_timestamp" and SCHEMES[name].timestamp_json)


@pytest.mark.parametrize("name", SCHEMES)
def test_the_second_of_two_secrets_matches(name):
    right = SECRETS.get(name, "s3cret")
    others = ["other", WHSEC.replace("M", "N", 1), "00" * 32, "whpk_" + base64.b64encode(b"0" * 32).decode()]
    verdict = check(name, signed(name), secrets=[*others, None, "", right])
    assert (verdict.ok, verdict.secret) == (True, 6)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("secrets", [[], [""], ["  "], [None, ""]])
def test_an_empty_secret_never_matches(name, secrets):
    request = signed(name)
    assert verify(SCHEMES[name], secrets, request, now=NOW).reason == "no_secret"


@pytest.mark.parametrize("name", SIGNED_BODIES)
def test_a_changed_body_is_refused(name):
    request = signed(name)
    for body in (BODY + b" ", BODY[:-1], BODY.replace(b"paid", b"void"), b""):
        tampered = SignedRequest(request.method, request.url, request.headers, body)
        unreadable = SCHEMES[name].timestamp_json and body in (BODY[:-1], b"")
        assert check(name, tampered).reason == ("malformed_timestamp" if unreadable else "bad_signature")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: None, "missing_signature"),
        (lambda value: value[:-4], "bad_signature or malformed_signature"),
        (lambda value: "", "malformed_signature"),
        (lambda value: value + "é", "malformed_signature"),
        (lambda value: "ÿ" * 40, "malformed_signature"),
        (lambda value: "?" + value.replace("=", ":").replace(",", ";"), "malformed_signature"),
        (lambda value: "x" * 100_000, "malformed_signature"),
    ],
    ids=["missing", "truncated", "empty", "non-ascii", "latin", "other-form", "huge"],
)
@pytest.mark.parametrize("name", SIGNED_BODIES)
def test_a_spoilt_signature_header_is_refused(name, change, reason):
    made = SCHEMES[name]
    verdict = check(name, changed(signed(name), made.header, change))
    assert not verdict.ok
    assert verdict.reason in reason


@pytest.mark.parametrize("name", SCHEMES)
def test_a_repeated_signature_header_is_refused(name):
    request = signed(name)
    twice = [pair for pair in request.headers if pair[0] == SCHEMES[name].header]
    repeated = SignedRequest(request.method, request.url, [*request.headers, *twice], request.body)
    assert check(name, repeated).reason == "malformed_signature"


@pytest.mark.parametrize("name", TIMED)
@pytest.mark.parametrize(
    ("over", "reason"), [(-1e3, "ok"), (0, "ok"), (1, "stale"), (1e9, "stale"), (-1, "future"), (-1e9, "future")]
)
def test_the_tolerance_goes_both_ways(name, over, reason):
    tolerance = SCHEMES[name].tolerance
    age = {"ok": max(0, tolerance + over), "stale": tolerance + over, "future": over - tolerance}[reason]
    verdict = check(name, signed(name), now=NOW + age)
    assert verdict.reason == reason
    assert (f"{abs(age):.0f} s {'older' if age > 0 else 'newer'}" in verdict.detail) is (reason != "ok")
    assert check(name, signed(name), now=NOW - tolerance).ok


@pytest.mark.parametrize("name", [name for name in TIMED if SCHEMES[name].timestamp_header])
@pytest.mark.parametrize("text", ["", "+5", " 5", "1_7", "1.5", "-1", "१७०", "9" * 40, "1e9"])
def test_a_timestamp_that_is_no_number_is_refused(name, text):
    request = changed(signed(name), SCHEMES[name].timestamp_header, lambda _: text)
    assert check(name, request).reason == "malformed_timestamp"


def test_a_hex_signature_in_another_encoding_is_refused():
    request = signed("github")
    mac = bytes.fromhex(dict(request.headers)["X-Hub-Signature-256"].removeprefix("sha256="))
    for text in (base64.b64encode(mac).decode(), mac.hex() + " ", "0x" + mac.hex()):
        spoilt = changed(request, "X-Hub-Signature-256", lambda _, text=text: "sha256=" + text)
        assert check("github", spoilt).reason in ("malformed_signature", "bad_signature") or text.endswith(" ")
    assert check("github", changed(request, "X-Hub-Signature-256", lambda _: "sha256=" + mac.hex().upper())).ok


def test_githubs_sha1_header_is_never_looked_at():
    request = SignedRequest("POST", "/", [("X-Hub-Signature", "sha1=" + "0" * 40)], BODY)
    assert check("github", request).reason == "missing_signature"


def test_stripes_secret_is_text_and_standards_is_base64():
    assert check("stripe", signed("stripe", secret=WHSEC), secrets=[WHSEC]).ok
    assert check("standard", signed("standard"), secrets=["whsec_not base64!"]).reason == "bad_signature"


def test_a_base64_secret_may_lack_its_padding():
    assert check("standard", signed("standard"), secrets=[WHSEC.rstrip("=")]).ok
    assert secret_problem(scheme("standard"), WHSEC.rstrip("=")) is None


@pytest.mark.parametrize("secret", ["pässword", "trailing ", "two\nlines", "\udcff"])
def test_a_token_that_no_header_can_hold_is_named(secret):
    assert "not printable ASCII without spaces around it" in secret_problem(scheme("token"), secret)
    assert check("token", signed("token"), secrets=[secret]).reason == "bad_signature"
    with pytest.raises(ValueError, match="not printable ASCII"):
        signed("token", secret=secret)


def test_names_of_a_delivery():
    request = signed("github")
    named = [("X-GitHub-Delivery", "72d3162e"), ("X-GitHub-Event", "push")]
    verdict = check(
        "github", SignedRequest("POST", "/", [*request.headers[:1], *request.headers[2:], *named], BODY)
    )
    assert (verdict.id, verdict.event) == ("72d3162e", "push")
    verdict = check("stripe", signed("stripe"))
    assert (verdict.id, verdict.event) == ("evt_1", "invoice.paid")
    nameless = check("custom", signed("custom"))
    assert len(nameless.id) == 32, "timestamp and body identify it"
    assert nameless.id != check("custom", signed("custom", now=NOW + 1), now=NOW).id


def test_githubs_documented_example():
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    request = SignedRequest("POST", "/", [("X-Hub-Signature-256", signature)], b"Hello, World!")
    assert check("github", request, secrets=["It's a Secret to Everybody"]).ok


def test_a_real_push_signed_by_octokit():
    recorded = json.loads((DATA / "github_push.signature.json").read_text())
    body = (DATA / "github_push.json").read_bytes()
    request = SignedRequest("POST", "/", [("X-Hub-Signature-256", recorded["signature"])], body)
    assert check("github", request, secrets=[recorded["secret"]]).ok


@pytest.mark.parametrize(
    ("given_scheme", "key", "words"),
    [
        ("githup", "scheme", 'did you mean "github"'),
        ({"scheme": "hmac"}, "header", "missing"),
        ({"header": "X", "headr": "Y"}, "headr", 'did you mean "header"'),
        ({"header": "X", "encoding": "hax"}, "encoding", "expected one of hex, base64, base64url"),
        ({"header": "X", "id_json": "id"}, "id_json", "expected a JSON pointer such as /id, or a list of them"),
        ({"header": "X y"}, "header", "expected a header's name"),
        ({"header": "X", "handshake": "any"}, "handshake", "expected one of github-ping"),
        ({"header": "X", "timestamp_header": "T"}, "timestamp_header", "not signed protects nothing"),
        ({"type": "token", "header": "X", "timestamp_json": "/t"}, "type", "a token signs no timestamp"),
        ({"header": "X", "tolerance": float("inf")}, "tolerance", "tolerance"),
        ({1: 2}, "1", "unknown"),
        (None, "scheme", "there are github, stripe"),
        ({"header": "X", "tolerance": "long"}, "tolerance", "tolerance"),
        ({"header": "X", "signed_content": "{timestamp}.{body}"}, "signed_content", "timestamp"),
        ({"header": "X", "signed_content": "{boddy}"}, "signed_content", "boddy"),
    ],
)
def test_an_unusable_scheme_says_what_is_wrong(given_scheme, key, words):
    with pytest.raises(SchemeError) as caught:
        scheme(given_scheme)
    assert key in {name for name, _ in caught.value.problems}
    assert words in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(list(SCHEMES)), body=st.binary(max_size=200), flip=st.integers(0, 10_000))
def test_every_body_round_trips_and_no_changed_one_passes(name, body, flip):
    request = signed(name, body)
    if SCHEMES[name].timestamp_json:
        assert check(name, request).reason == "malformed_timestamp"
        return
    assert check(name, request).ok
    if body and SCHEMES[name].type != "token":
        at = flip % len(body)
        spoilt = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        assert not check(name, SignedRequest("POST", request.url, request.headers, spoilt)).ok


def test_every_preset_can_be_made():
    for name in presets():
        if name != "hmac":
            assert scheme(name).header


def test_no_problem_of_a_scheme_shows_what_was_given():
    """A missing space, `{secret:S3CR3T}`, makes the secret a key."""
    for slip in ({"secret:S3CR3T": None}, {"scheme": "S3CR3T"}, {"header": "X", "type": "S3CR3T"}):
        with pytest.raises(SchemeError) as caught:
            scheme({"scheme": "hmac", **slip})
        assert "S3CR3T" not in str(caught.value)


def test_a_clock_that_is_no_number_accepts_nothing():
    assert not check("stripe", signed("stripe"), now=float("nan")).ok


def test_one_secret_alone_is_no_list_of_letters():
    request = signed("github", secret="s")
    assert not verify(SCHEMES["github"], "secret", request, now=NOW).ok
    assert verify(SCHEMES["github"], "s", request, now=NOW).ok


def test_a_secret_that_is_not_written_as_the_scheme_says_signs_nothing():
    made = scheme("standard")
    assert "not base64" in secret_problem(made, "whsec_not base64!")
    assert secret_problem(made, WHSEC) is None
    assert "not an Ed25519 key in hex" in secret_problem(scheme("discord"), "00" * 31)
    with pytest.raises(ValueError, match="not base64"):
        sign(made, "whsec_not base64!", SignedRequest("POST", "/", [], b"{}"), now=NOW)


def test_without_cryptography_ed25519_is_closed_and_says_what_to_install(tmp_path):
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "w.yml").write_text("sources: {discord: {secret: $PUBLIC}}\n")
    program = """
import sys
sys.modules["cryptography"] = None
from director.cli import main
from director.signing import SignedRequest, scheme, verify
request = SignedRequest("POST", "/", [("X-Signature-Ed25519", "00" * 64), ("X-Signature-Timestamp", "1")], b"{}")
verdict = verify(scheme("discord"), ["00" * 32], request, now=1)
print(verdict.reason, verdict.detail)
sys.exit(main(["check"]))
"""
    env = {**os.environ, "DIRECTOR_HOME": str(tmp_path), "PUBLIC": "00" * 32}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    wanted = 'Ed25519 needs the package "cryptography": pip install cryptography'
    assert done.stdout.startswith(f"no_secret {wanted}\n")
    assert f'source "discord" PUBLIC cannot be used: {wanted}' in done.stdout


@pytest.mark.parametrize("event", ["commande.payée", "заказ оплачен", "注文"])
def test_an_event_may_be_in_any_language(event):
    """Given a type that a trigger names, then it is what the trigger sees, and no hash of it."""
    made = scheme({"header": "X-Signature", "event_json": "/type"})
    request = SignedRequest("POST", "/", [], json.dumps({"type": event}).encode())
    signed = SignedRequest("POST", "/", sign(made, "secret", request, now=0), request.body)
    assert verify(made, ["secret"], signed, now=0).event == event
