"""Webhook signatures. Pure: schemes are data, time comes in, `verify` never raises.

    scheme(name_or_mapping) -> Scheme
    verify(scheme, secrets, request, now=…) -> Verdict
    sign(scheme, secret, request, now=…) -> headers

A scheme says where the signature is, what it covers and how it is written; `PRESETS` holds each
provider's, with the source of its format. Everything is checked on the bytes as they were received.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

Reason = Literal[
    "ok",
    "no_secret",
    "missing_signature",
    "malformed_signature",
    "bad_signature",
    "malformed_timestamp",
    "stale",
    "future",
]

PRESETS: Final[dict[str, dict[str, Any]]] = {
    # docs.github.com, "Validating webhook deliveries"; the SHA-1 header is never looked at.
    "github": {
        "header": "X-Hub-Signature-256",
        "prefix": "sha256=",
        "id_header": "X-GitHub-Delivery",
        "event_header": "X-GitHub-Event",
        "handshake": "github-ping",
    },
    # docs.stripe.com/webhooks, "Verify manually"; the secret is used as text, whsec_ included.
    "stripe": {
        "header": "Stripe-Signature",
        "separator": ",",
        "prefix": "v1=",
        "timestamp_element": "t",
        "signed_content": "{timestamp}.{body}",
        "id_json": "/id",
        "event_json": "/type",
    },
    # Standard Webhooks, spec/standard-webhooks.md, v1; Svix sends it under names of its own.
    "standard": {
        "header": "webhook-signature",
        "header_aliases": ["svix-signature"],
        "separator": " ",
        "prefix": "v1,",
        "encoding": "base64",
        "secret_encoding": "base64",
        "secret_prefix": "whsec_",
        "signed_content": "{id}.{timestamp}.{body}",
        "timestamp_header": "webhook-timestamp",
        "id_header": "webhook-id",
        "event_json": "/type",
    },
    # RFC 6750; the scheme's name is case-insensitive (RFC 9110, 11.1).
    "token": {"type": "token", "header": "Authorization", "prefix": "Bearer "},
    "hmac": {},
}
ALIASES: Final = {"webhook-timestamp": "svix-timestamp", "webhook-id": "svix-id"}

MAX_HEADER_CHARS = 8192
MAX_SIGNATURES = 32
MAX_ID_CHARS = 200
_DIGITS = re.compile(r"[0-9]{1,16}", re.ASCII)
_HEX = re.compile(r"[0-9a-fA-F]+", re.ASCII)
_FIELD = re.compile(r"(\{[^{}]*\})")
_HASHES = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512, "sha1": hashlib.sha1}


class SchemeError(ValueError):
    """A scheme that cannot be used: `problems` are pairs of key (or None) and what is wrong with it."""

    def __init__(self, problems: Sequence[tuple[str | None, str]]) -> None:
        super().__init__("; ".join(text for _, text in problems))
        self.problems = list(problems)


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


class Scheme(msgspec.Struct, frozen=True, kw_only=True):
    """How a source signs; the keys are those of a source in YAML."""

    type: Literal["hmac", "token"] = "hmac"
    header: str = ""
    header_aliases: tuple[str, ...] = ()
    prefix: str = ""
    separator: str = ""
    algorithm: Literal["sha256", "sha384", "sha512", "sha1"] = "sha256"
    encoding: Literal["hex", "base64", "base64url"] = "hex"
    secret_encoding: Literal["utf8", "hex", "base64"] = "utf8"
    secret_prefix: str = ""
    signed_content: str = "{body}"
    timestamp_header: str = ""
    timestamp_element: str = ""
    timestamp_json: str = ""
    timestamp_unit: Literal["s", "ms"] = "s"
    tolerance: float = 300
    id_header: str = ""
    id_json: str = ""
    event_header: str = ""
    event_json: str = ""
    handshake: str = ""

    @property
    def timed(self) -> bool:
        """Return whether deliveries carry a timestamp."""
        return bool(self.timestamp_header or self.timestamp_element or self.timestamp_json)


def scheme(name_or_mapping: str | Mapping[str, Any]) -> Scheme:
    """Return a preset, or one changed by the mapping's other keys (`scheme` names the preset).

    Raises:
        SchemeError: every problem at once.
    """
    given = {"scheme": name_or_mapping} if isinstance(name_or_mapping, str) else dict(name_or_mapping)
    preset = given.pop("scheme", "hmac")
    problems: list[tuple[str | None, str]] = []
    if preset not in PRESETS:
        near = difflib.get_close_matches(str(preset), PRESETS, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(PRESETS)}"
        problems.append(("scheme", f'no scheme is named "{preset}"; {hint}'))
    fields = set(Scheme.__struct_fields__)
    for key in given:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            problems.append((key, f'unknown key "{key}"' + (f'; did you mean "{near[0]}"?' if near else "")))
    values = {**PRESETS.get(str(preset), {}), **{k: v for k, v in given.items() if k in fields}}
    made = Scheme()
    for key, value in values.items():
        try:
            msgspec.convert({key: value}, Scheme)
        except msgspec.ValidationError as exc:
            problems.append((key, f'"{key}": {str(exc).partition(" - at")[0]}'))
    if not problems:
        made = msgspec.convert(values, Scheme)
        problems += _problems(made)
    if problems:
        raise SchemeError(problems)
    return made


def _problems(made: Scheme) -> list[tuple[str | None, str]]:
    found: list[tuple[str | None, str]] = []
    if not made.header:
        found.append(("header", '"header" is missing: the name of the header that holds the signature'))
    names = set(_FIELD.findall(made.signed_content))
    for name in sorted(names - {"{body}", "{timestamp}", "{id}", "{method}", "{path}", "{url}"}):
        found.append(("signed_content", f"{name} is not known; there are body, timestamp, id, method, path, url"))
    if "{body}" not in names and made.type == "hmac":
        found.append(("signed_content", "the signature must cover {body}"))
    if "{timestamp}" in names and not made.timed:
        found.append(("signed_content", "{timestamp} needs timestamp_header, timestamp_element or timestamp_json"))
    if "{id}" in names and not made.id_header:
        found.append(("signed_content", "{id} needs id_header"))
    if sum(map(bool, (made.timestamp_header, made.timestamp_element, made.timestamp_json))) > 1:
        found.append(("timestamp_header", "give one of timestamp_header, timestamp_element and timestamp_json"))
    if made.tolerance <= 0:
        found.append(("tolerance", "the tolerance must be more than 0 seconds"))
    return found


def verify(scheme: Scheme, secrets: Sequence[str | None], request: SignedRequest, *, now: float) -> Verdict:
    """Check a request's signature against every secret, then its age.

    Args:
        scheme: of the source.
        secrets: in order of preference; empty ones never match.
        request: as it was received.
        now: POSIX seconds.
    """
    try:
        return _verify(scheme, secrets, request, now)
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError, RecursionError):
        # Whatever a hostile request makes fail above is not a signature.
        return Verdict(ok=False, reason="malformed_signature")


def _verify(scheme: Scheme, secrets: Sequence[str | None], request: SignedRequest, now: float) -> Verdict:
    usable = [(index, secret) for index, secret in enumerate(secrets) if secret and secret.strip()]
    if not usable:
        return _refused("no_secret")
    headers = _Headers(request.headers)
    values = headers.all(scheme.header, *scheme.header_aliases)
    if not values:
        return _refused("missing_signature")
    if len(values) > 1 or len(values[0]) > MAX_HEADER_CHARS:
        return _refused("malformed_signature")
    signatures, element = _split(scheme, values[0])
    if not signatures:
        return _refused("malformed_signature")
    timestamp = _timestamp(scheme, headers, request.body, element)
    if timestamp is None:
        return _refused("malformed_timestamp")
    ids = headers.all(scheme.id_header, ALIASES.get(scheme.id_header, "")) if scheme.id_header else []
    if len(ids) > 1:
        return _refused("malformed_signature")
    matched = _match(scheme, usable, signatures, request, timestamp, ids[0] if ids else "")
    if matched is None or isinstance(matched, str):
        return _refused(matched or "bad_signature")
    if scheme.timed:
        age = now - int(timestamp) / (1000 if scheme.timestamp_unit == "ms" else 1)
        if age > scheme.tolerance:
            return _refused("stale")
        if -age > scheme.tolerance:
            return _refused("future")
    identity, event = _names(scheme, headers, request.body, ids)
    if not identity and scheme.timed:
        identity = hashlib.sha256(timestamp.encode() + b"." + request.body).hexdigest()[:32]
    return Verdict(ok=True, reason="ok", id=identity, event=event, secret=matched[0])


def sign(scheme: Scheme, secret: str, request: SignedRequest, *, now: float) -> list[tuple[str, str]]:
    """Return the headers that make a request verifiable: signature, and timestamp and id where signed.

    An id that the request has already is kept; else it is made from body and time.
    """
    headers = _Headers(request.headers)
    added: list[tuple[str, str]] = []
    timestamp = str(int(now * (1000 if scheme.timestamp_unit == "ms" else 1)))
    if scheme.timestamp_json:
        timestamp = _pointer_text(request.body, scheme.timestamp_json)
    identity = (headers.all(scheme.id_header) or [""])[0] if scheme.id_header else ""
    if scheme.id_header and not identity:
        identity = "msg_" + hashlib.sha256(f"{now}.".encode() + request.body).hexdigest()[:24]
        added.append((scheme.id_header, identity))
    if scheme.timestamp_header:
        added.append((scheme.timestamp_header, timestamp))
    if scheme.type == "token":
        return [*added, (scheme.header, scheme.prefix + secret)]
    key = _key(scheme, secret) or b""
    mac = hmac.new(key, _content(scheme, request, timestamp, identity), _HASHES[scheme.algorithm]).digest()
    text = scheme.prefix + _encode(scheme, mac)
    if scheme.timestamp_element:
        text = f"{scheme.timestamp_element}={timestamp}{scheme.separator}{text}"
    return [*added, (scheme.header, text)]


class _Headers:
    """Headers by lower-case name; bytes are read as latin-1, as HTTP servers do."""

    def __init__(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(_latin(name).lower(), []).append(_latin(value))

    def all(self, *names: str) -> list[str]:
        """Return every value of the first of the names that is there."""
        for name in names:
            found = self._values.get(name.lower()) if name else None
            if found:
                return found
        return []


def _latin(text: Any) -> str:
    return text.decode("latin-1") if isinstance(text, bytes) else str(text)


def _refused(reason: Reason) -> Verdict:
    return Verdict(ok=False, reason=reason)


def _split(scheme: Scheme, value: str) -> tuple[list[str], list[str]]:
    """Return the signatures in a header, and its timestamp elements."""
    items = [item.strip() for item in value.split(scheme.separator)] if scheme.separator else [value.strip()]
    if len(items) > MAX_SIGNATURES:
        return [], []
    size = len(scheme.prefix)
    if scheme.type == "token":
        found = [item[size:].strip() for item in items if item[:size].lower() == scheme.prefix.lower()]
    else:
        found = [item[size:] for item in items if item.startswith(scheme.prefix)]
    mark = scheme.timestamp_element + "="
    times = [item[len(mark) :] for item in items if scheme.timestamp_element and item.startswith(mark)]
    return [item for item in found if item], times


def _timestamp(scheme: Scheme, headers: _Headers, body: bytes, elements: list[str]) -> str | None:
    """Return the timestamp's text, "" when the scheme has none, None when it is missing or no number."""
    if not scheme.timed:
        return ""
    if scheme.timestamp_json:
        elements = [_pointer_text(body, scheme.timestamp_json)]
    elif scheme.timestamp_header:
        elements = headers.all(scheme.timestamp_header, ALIASES.get(scheme.timestamp_header, ""))
    if len(elements) != 1 or not _DIGITS.fullmatch(elements[0]):
        return None
    return elements[0]


def _match(
    scheme: Scheme,
    secrets: Sequence[tuple[int, str]],
    signatures: Sequence[str],
    request: SignedRequest,
    timestamp: str,
    identity: str,
) -> tuple[int] | Literal["malformed_signature"] | None:
    """Return the index of the secret that matches. Every secret is tried, in constant time each."""
    if scheme.type == "token":
        given = [signature.encode("utf-8", "surrogatepass") for signature in signatures]
        expected = [(index, secret.encode()) for index, secret in secrets]
    else:
        given = [mac for signature in signatures if (mac := _decode(scheme, signature)) is not None]
        content = _content(scheme, request, timestamp, identity)
        keys = [(index, _key(scheme, secret)) for index, secret in secrets]
        hashed = _HASHES[scheme.algorithm]
        expected = [(index, hmac.new(key, content, hashed).digest()) for index, key in keys if key]
    if not given:
        return "malformed_signature"
    for index, right in expected:
        for one in given:
            if hmac.compare_digest(one, right):
                return (index,)
    return None


def _content(scheme: Scheme, request: SignedRequest, timestamp: str, identity: str) -> bytes:
    if scheme.signed_content == "{body}":
        return request.body
    path = "/" + request.url.partition("://")[2].partition("/")[2] if "://" in request.url else request.url
    values = {
        "{timestamp}": timestamp,
        "{id}": identity,
        "{method}": request.method,
        "{url}": request.url,
        "{path}": path,
    }
    parts = _FIELD.split(scheme.signed_content)
    return b"".join(
        request.body if part == "{body}" else values.get(part, part).encode("latin-1", "replace") for part in parts
    )


def _key(scheme: Scheme, secret: str) -> bytes | None:
    """Return a secret's bytes, or None for one that is not written as the scheme says: it never matches."""
    text = secret.removeprefix(scheme.secret_prefix) if scheme.secret_prefix else secret
    try:
        if scheme.secret_encoding == "base64":
            return base64.b64decode(text, validate=True) or None
        if scheme.secret_encoding == "hex":
            return bytes.fromhex(text) or None
    except ValueError:
        return None
    return text.encode() or None


def _decode(scheme: Scheme, text: str) -> bytes | None:
    """Return a signature's bytes, or None when it is not written as the scheme says."""
    try:
        if scheme.encoding == "hex":
            return bytes.fromhex(text) if _HEX.fullmatch(text) else None
        raw = text.encode("ascii")
        if scheme.encoding == "base64url":
            raw = raw.replace(b"-", b"+").replace(b"_", b"/") + b"=" * (-len(raw) % 4)
        mac = base64.b64decode(raw, validate=True)
    except (ValueError, binascii.Error):
        return None
    # Base64 has several texts for some bytes; only the canonical one is a signature.
    if scheme.encoding == "base64" and base64.b64encode(mac) != raw:
        return None
    return mac


def _encode(scheme: Scheme, mac: bytes) -> str:
    if scheme.encoding == "hex":
        return mac.hex()
    if scheme.encoding == "base64":
        return base64.b64encode(mac).decode()
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


def _names(scheme: Scheme, headers: _Headers, body: bytes, ids: Sequence[str]) -> tuple[str, str]:
    """Return the delivery's id and event."""
    identity = ids[0] if ids else ""
    if scheme.id_json:
        identity = _pointer_text(body, scheme.id_json)
    events = headers.all(scheme.event_header) if scheme.event_header else []
    event = events[0] if events else ""
    if scheme.event_json:
        event = _pointer_text(body, scheme.event_json)
    return _bounded(identity), _bounded(event)


def _bounded(text: str) -> str:
    """Return a text that is fit to be a part of a key and of a log line."""
    if len(text) <= MAX_ID_CHARS and text.isascii() and text.isprintable() and " " not in text:
        return text
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _pointer_text(body: bytes, pointer: str) -> str:
    """Return the text or number at a JSON pointer (RFC 6901), "" when there is none."""
    try:
        value = msgspec.json.decode(body)
        for part in pointer.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            value = value[int(name)] if isinstance(value, list) else value[name]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
