"""Webhook signatures. Pure: schemes are data, time comes in, `verify` never raises.

    scheme(name_or_mapping) -> Scheme
    verify(scheme, secrets, request, now=…) -> Verdict
    sign(scheme, secret, request, now=…) -> headers

Everything is checked on the bytes as they were received.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import msgspec

from director import documents
from director.schemes import FIELD, FIELDS, Pointers, Scheme, SchemeError, presets, scheme

__all__ = ["Scheme", "SchemeError", "SignedRequest", "Verdict", "presets", "scheme", "sign", "verify"]

Reason = Literal[
    "ok", "no_secret", "missing_signature", "malformed_signature", "bad_signature", "malformed_timestamp", "stale",
    "future",
]  # fmt: skip
ALIASES = {
    "webhook-timestamp": "svix-timestamp",
    "webhook-id": "svix-id",
    "x-shopify-webhook-id": "shopify-webhook-id",
    "x-shopify-topic": "shopify-topic",
}
"""Other names of the headers beside a signature, as `header_aliases` are of its own."""
NO_ED25519 = 'Ed25519 needs the package "cryptography": pip install cryptography'
MAX_HEADER_CHARS = 8192
MAX_SIGNATURES = 32
MAX_ID_CHARS = 200
_DIGITS = re.compile(r"[0-9]{1,16}", re.ASCII)
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+", re.ASCII)
_INDEX = re.compile(r"0|[1-9][0-9]{0,6}", re.ASCII)


class SignedRequest(msgspec.Struct, frozen=True):
    """A request as it came: headers in order, repeats kept; the body as bytes."""

    method: str
    url: str
    """As the sender knows it."""
    headers: Sequence[tuple[str, str]]
    body: bytes


class Verdict(msgspec.Struct, frozen=True):
    """What a verification found."""

    ok: bool
    reason: Reason
    id: str = ""
    """The delivery's: from the sender, or a hash of timestamp and body; empty when nothing identifies it."""
    event: str = ""
    secret: int | None = None
    """Index of the secret that matched."""
    detail: str = ""
    """The reason in a sentence, for whoever runs the service; shows no secret and no signature."""


def secret_problem(scheme: Scheme, secret: str) -> str | None:
    """Return why a secret never matches, or None: it is not written as the scheme says, or nothing can read it."""
    if _key(scheme, secret) is None:
        return f"is not {_written(scheme)}, so it never matches"
    if scheme.type == "ed25519" and not _ed25519():
        return f"cannot be used: {NO_ED25519}"
    return None


def verify(scheme: Scheme, secrets: Sequence[str | None], request: SignedRequest, *, now: float) -> Verdict:
    """Check a request's signature against every secret (empty ones never match), then its age; `now`: POSIX s."""
    try:
        return _verify(scheme, secrets, request, now)
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError, RecursionError):
        # Whatever a hostile request makes fail above is not a signature.
        return Verdict(False, "malformed_signature", detail="the request cannot be read")


def claims(scheme: Scheme, request: SignedRequest, *, reads_body: bool = True) -> tuple[str, str]:
    """Return the delivery id and event that a request claims, whoever sent it; "" for what it does not say."""
    return _claims(scheme, request, _headers(scheme, request.headers), reads_body)


def _claims(
    scheme: Scheme, request: SignedRequest, headers: Mapping[str, list[str]], reads_body: bool
) -> tuple[str, str]:
    identity, event = (headers.get(name, [""])[0] for name in (scheme.id_header, scheme.event_header))
    if reads_body and (scheme.id_json or scheme.event_json or scheme.event_keys):
        document = _document(request)
        identity = _pointed(document, scheme.id_json) if scheme.id_json else identity
        event = _pointed(document, scheme.event_json) if scheme.event_json else event
        if scheme.event_keys and isinstance(document, Mapping):
            event = next((key for key in scheme.event_keys if key in document), "")
    return _bounded(identity), _bounded(event, is_key=False)


def _verify(scheme: Scheme, secrets: Sequence[str | None], request: SignedRequest, now: float) -> Verdict:
    listed = [secrets] if isinstance(secrets, str) else secrets
    given = [(index, secret) for index, secret in enumerate(listed) if secret and secret.strip()]
    if not given:
        return Verdict(False, "no_secret", detail="no secret is set")
    if scheme.type == "ed25519" and not _ed25519():
        return Verdict(False, "no_secret", detail=NO_ED25519)
    headers = _headers(scheme, request.headers)
    values = headers.get(scheme.header, ())
    if not values:
        return Verdict(False, "missing_signature", detail=f"there is no header {scheme.header}")
    signatures, times, wrong = _split(scheme, values)
    ids = headers.get(scheme.id_header, ())
    if len(ids) > 1 or (not ids and "{id}" in scheme.signed_content):
        wrong = wrong or f"there {'are several headers' if ids else 'is no header'} {scheme.id_header}"
    if wrong:
        return Verdict(False, "malformed_signature", detail=wrong)
    if scheme.timestamp_header:
        times = headers.get(scheme.timestamp_header, [])
    elif scheme.timestamp_json:
        times = [_pointed(_document(request), scheme.timestamp_json)]
    if scheme.timed and (len(times) != 1 or not _DIGITS.fullmatch(times[0])):
        where = scheme.timestamp_header or f"{scheme.timestamp_element or scheme.timestamp_json}"
        found = f"there are {len(times)} timestamps" if len(times) != 1 else "the timestamp is no whole number"
        return Verdict(False, "malformed_timestamp", detail=f"{found} in {where}")
    identity, timestamp = ids[0] if ids else "", times[0] if scheme.timed else ""
    matched = _match(scheme, given, signatures, _content(scheme, request, timestamp, identity))
    if matched is None:
        return Verdict(False, "malformed_signature", detail=f"{scheme.header} holds nothing in {scheme.encoding}")
    if matched < 0:
        tried = f"none of the {len(given)} secrets that are set" if len(given) > 1 else "the secret that is set"
        made = "does not make" if len(given) == 1 else "makes"
        return Verdict(False, "bad_signature", detail=f"{tried} {made} this signature")
    if scheme.timed:
        age = now - int(timestamp) / (1000 if scheme.timestamp_unit == "ms" else 1)
        if not abs(age) <= scheme.tolerance:
            text = f"the timestamp is {abs(age):.0f} s {'older' if age > 0 else 'newer'} than this machine's clock"
            detail = f"{text}; the tolerance is {scheme.tolerance:g} s"
            return Verdict(False, "stale" if age > 0 else "future", detail=detail)
    identity, event = _claims(scheme, request, headers, True)
    if not identity and scheme.timed:
        identity = hashlib.sha256(timestamp.encode() + b"." + request.body).hexdigest()[:32]
    return Verdict(True, "ok", identity, event, matched)


def sign(scheme: Scheme, secret: str, request: SignedRequest, *, now: float) -> list[tuple[str, str]]:
    """Return the headers that make a request verifiable: signature, and timestamp and id where signed.

    An id that the request has is kept. For Ed25519 the secret is the private key, written as the public one
    would be (or `whsk_…`). Raises ValueError when the secret is not written as the scheme says.
    """
    key = _key(scheme, secret)
    if key is None:
        raise ValueError(f"the secret is not {_written(scheme)}")
    added: list[tuple[str, str]] = []
    timestamp = str(int(now * (1000 if scheme.timestamp_unit == "ms" else 1)))
    if scheme.timestamp_json:
        timestamp = _pointed(_document(request), scheme.timestamp_json)
    identity = _headers(scheme, request.headers).get(scheme.id_header, [""])[0]
    if scheme.id_header and not identity:
        identity = "msg_" + hashlib.sha256(f"{now}.".encode() + request.body).hexdigest()[:24]
        added.append((scheme.id_header, identity))
    if scheme.timestamp_header:
        added.append((scheme.timestamp_header, timestamp))
    if scheme.type == "token":
        return [*added, (scheme.header, scheme.prefix + secret)]
    content = _content(scheme, request, timestamp, identity)
    if scheme.type == "ed25519":
        if (ed25519 := _ed25519()) is None:
            raise ValueError(NO_ED25519)
        made = ed25519.Ed25519PrivateKey.from_private_bytes(key[:32]).sign(content)
    else:
        made = hmac.digest(key, content, scheme.algorithm)
    text = scheme.prefix + _encode(scheme, made)
    if scheme.timestamp_element:
        text = f"{scheme.timestamp_element}={timestamp}{scheme.separator}{text}"
    return [*added, (scheme.header, text)]


@cache
def _names(scheme: Scheme) -> dict[str, str]:
    """Return lower-case header → the scheme's own name for it, of the headers that a scheme reads."""
    others = scheme.timestamp_header, scheme.id_header, scheme.event_header
    read = {name.lower(): name for name in others if name}
    read |= {ALIASES[name]: own for name, own in read.items() if name in ALIASES}
    return read | {name.lower(): scheme.header for name in (scheme.header, *scheme.header_aliases)}


def _headers(scheme: Scheme, pairs: Sequence[tuple[Any, Any]]) -> dict[str, list[str]]:
    """Return every value of the headers that a scheme reads."""
    names = _names(scheme)
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        known = names.get(_latin(name).lower())
        if known is not None:
            found.setdefault(known, []).append(_latin(value))
    return found


def _latin(text: str | bytes) -> str:
    """Return a header's text; bytes are read as HTTP servers do."""
    return text.decode("latin-1") if isinstance(text, bytes) else str(text)


def _document(request: SignedRequest) -> Any:
    """Return what the body says, None when it cannot be read."""
    kinds = (_latin(value) for name, value in request.headers if _latin(name).lower() == "content-type")
    try:
        return documents.decode(next(kinds, ""), request.body)
    except ValueError:
        return None


def _split(scheme: Scheme, values: Sequence[str]) -> tuple[list[str], list[str], str]:
    """Return the signatures in a header, its timestamp elements, and what is wrong with it."""
    value = values[0]
    if len(values) > 1 or len(value) > MAX_HEADER_CHARS:
        wrong = "there are several headers" if len(values) > 1 else f"over {MAX_HEADER_CHARS} characters are in"
        return [], [], f"{wrong} {scheme.header}"
    items = [item.strip() for item in value.split(scheme.separator)] if scheme.separator else [value.strip()]
    if len(items) > MAX_SIGNATURES:
        return [], [], f"over {MAX_SIGNATURES} signatures are in {scheme.header}"
    size = len(scheme.prefix)
    if scheme.type == "token":
        found = [item[size:].strip() for item in items if item[:size].lower() == scheme.prefix.lower()]
    else:
        found = [item[size:] for item in items if item.startswith(scheme.prefix)]
    found = [item for item in found if item]
    mark = scheme.timestamp_element + "="
    times = [item[len(mark) :] for item in items if scheme.timestamp_element and item.startswith(mark)]
    nothing = f'nothing that starts with "{scheme.prefix}"' if scheme.prefix else "nothing"
    return found, times, "" if found else f"{nothing} is in {scheme.header}"


def _match(scheme: Scheme, secrets: list[tuple[int, str]], signatures: list[str], content: bytes) -> int | None:
    """Return the index of the secret that matches, -1 for none, or None when nothing is written as a signature.

    In constant time for each secret and signature.
    """
    if scheme.type == "token":
        given = [signature.encode("utf-8", "surrogatepass") for signature in signatures]
    else:
        given = [mac for signature in signatures if (mac := _decode(scheme, signature)) is not None]
    keys = [(index, key) for index, secret in secrets if (key := _key(scheme, secret))]
    if not given:
        return None
    if scheme.type == "ed25519":
        matching = (index for index, key in keys for one in given if _is_signed(key[-32:], one, content))
    else:
        if scheme.type == "hmac":
            keys = [(index, hmac.digest(key, content, scheme.algorithm)) for index, key in keys]
        matching = (index for index, right in keys for one in given if hmac.compare_digest(one, right))
    return next(matching, -1)


@cache
def _ed25519() -> Any:
    """Return the module that knows Ed25519 (RFC 8032), None when it is not installed."""
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        return None
    return ed25519


def _is_signed(public: bytes, signature: bytes, content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        _ed25519().Ed25519PublicKey.from_public_bytes(public).verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True


def _content(scheme: Scheme, request: SignedRequest, timestamp: str, identity: str) -> bytes:
    if scheme.signed_content == "{body}":
        return request.body
    path = request.url if request.url.startswith("/") else "/" + request.url.partition("://")[2].partition("/")[2]
    values = dict(zip(FIELDS[1:], (timestamp, identity, request.method, path, request.url), strict=True))
    return b"".join(
        request.body if part == "{body}" else values.get(part, part).encode("latin-1")
        for part in FIELD.split(scheme.signed_content)
    )


def _key(scheme: Scheme, secret: str) -> bytes | None:
    """Return a secret's bytes, or None for one that is not written as the scheme says: it never matches."""
    if scheme.type == "token":  # what a header can hold and every server reads alike
        fits = secret.isascii() and secret.isprintable() and secret == secret.strip()
        return secret.encode() if fits else None
    text = secret.removeprefix(scheme.secret_prefix)
    if scheme.type == "ed25519":
        text = text.removeprefix("whsk_")  # Standard Webhooks' private key: seed and public key
    try:
        if scheme.secret_encoding == "base64":
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)  # SDKs take it unpadded
        else:
            key = bytes.fromhex(text) if scheme.secret_encoding == "hex" else text.encode()
    except ValueError:
        return None
    return key if key and (scheme.type != "ed25519" or len(key) in (32, 64)) else None


def _written(scheme: Scheme) -> str:
    if scheme.type == "token":
        return "printable ASCII without spaces around it"
    return "an Ed25519 key in " * (scheme.type == "ed25519") + scheme.secret_encoding


def _decode(scheme: Scheme, text: str) -> bytes | None:
    """Return a signature's bytes, or None when it is not written as the scheme says."""
    if scheme.encoding == "hex":
        return bytes.fromhex(text) if _HEX.fullmatch(text) else None
    try:
        raw = text.encode("ascii")
        if scheme.encoding == "base64url":
            raw = raw.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(raw) % 4)
        mac = base64.b64decode(raw, validate=True)
    except (ValueError, binascii.Error):
        return None
    # Base64 has several texts for some bytes; only the canonical one is a signature.
    return mac if scheme.encoding == "base64url" or base64.b64encode(mac) == raw else None


def _encode(scheme: Scheme, mac: bytes) -> str:
    if scheme.encoding == "hex":
        return mac.hex()
    text = base64.b64encode(mac) if scheme.encoding == "base64" else base64.urlsafe_b64encode(mac).rstrip(b"=")
    return text.decode()


def _bounded(text: str, *, is_key: bool = True) -> str:
    """Return a text that is fit for a log line and, if it must, to be a part of a key; a hash for any other."""
    fits = len(text) <= MAX_ID_CHARS and text.isprintable()
    if fits and not (is_key and (not text.isascii() or " " in text)):
        return text
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _pointed(document: Any, pointers: Pointers) -> str:
    """Return the first text or number that JSON pointers (RFC 6901) lead to, "" when there is none."""
    for pointer in [pointers] if isinstance(pointers, str) else pointers:
        value = document
        try:
            for part in pointer.split("/")[1:]:
                name = part.replace("~1", "/").replace("~0", "~")
                if isinstance(value, list) and not _INDEX.fullmatch(name):
                    raise LookupError
                value = value[int(name)] if isinstance(value, list) else value[name]
        except (LookupError, TypeError):
            continue
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
    return ""
