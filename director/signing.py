"""Webhook signatures. Pure: schemes are data, time comes in, `verify` never raises.

    scheme(name_or_mapping) -> Scheme
    verify(scheme, secrets, request, now=…) -> Verdict
    sign(scheme, secret, request, now=…) -> headers

A scheme says where the signature is, what it covers and how it is written; `schemes.yml` holds each
provider's. Everything is checked on the bytes as they were received.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from director import yamltree
from director.yamltree import did_you_mean, quote

Reason = Literal[
    "ok", "no_secret", "missing_signature", "malformed_signature", "bad_signature", "malformed_timestamp", "stale",
    "future",
]  # fmt: skip
ALIASES: Final = {"webhook-timestamp": "svix-timestamp", "webhook-id": "svix-id"}
MAX_HEADER_CHARS = 8192
MAX_SIGNATURES = 32
MAX_ID_CHARS = 200
_DIGITS = re.compile(r"[0-9]{1,16}", re.ASCII)
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+", re.ASCII)
_INDEX = re.compile(r"0|[1-9][0-9]{0,6}", re.ASCII)
_FIELD = re.compile(r"(\{[^{}]*\})")
_FIELDS = ("{body}", "{timestamp}", "{id}", "{method}", "{path}", "{url}")


class SchemeError(ValueError):
    """A scheme that cannot be used: `problems` are pairs of a key and what is wrong with it."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
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


Header = Annotated[str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]*$", description="a header's name")]
Pointer = Annotated[str, Meta(pattern="^(/|$)", description="a JSON pointer such as /id")]


class Scheme(msgspec.Struct, frozen=True, kw_only=True):
    """How a source signs; the keys are those of a source in YAML."""

    type: Literal["hmac", "token"] = "hmac"
    header: Header = ""
    header_aliases: tuple[Header, ...] = ()
    prefix: str = ""
    separator: str = ""
    algorithm: Literal["sha256", "sha384", "sha512", "sha1"] = "sha256"
    encoding: Literal["hex", "base64", "base64url"] = "hex"
    secret_encoding: Literal["utf8", "hex", "base64"] = "utf8"
    secret_prefix: str = ""
    signed_content: str = "{body}"
    timestamp_header: Header = ""
    timestamp_element: str = ""
    timestamp_json: Pointer = ""
    timestamp_unit: Literal["s", "ms"] = "s"
    tolerance: Annotated[float, Meta(gt=0, le=10 * 365 * 86400)] = 300
    id_header: Header = ""
    id_json: Pointer = ""
    event_header: Header = ""
    event_json: Pointer = ""
    handshake: Literal["", "github-ping"] = ""

    @property
    def timed(self) -> bool:
        """Return whether deliveries carry a timestamp."""
        return bool(self.timestamp_header or self.timestamp_element or self.timestamp_json)


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Return the schemes of `schemes.yml` by name."""
    tree: Any = yamltree.parse((resources.files("director") / "schemes.yml").read_bytes())
    return dict(yamltree.plain(tree, lambda at, text: None))


def scheme(name_or_mapping: str | Mapping[str, Any]) -> Scheme:
    """Return a preset, or one changed by the mapping's other keys (`scheme` names the preset).

    Raises:
        SchemeError: every problem at once. No text shows what was given: it may be a secret in the wrong place.
    """
    given = dict(name_or_mapping) if isinstance(name_or_mapping, Mapping) else {"scheme": name_or_mapping}
    preset, fields = given.pop("scheme", "hmac"), Scheme.__struct_fields__
    problems: list[tuple[str, str]] = []
    if not isinstance(preset, str) or preset not in presets():
        hint = did_you_mean(str(preset), presets()) or f"there are {', '.join(presets())}"
        problems.append(("scheme", f"no scheme has this name; {hint}"))
    for key, value in given.items():
        try:
            if key not in fields:
                hint = did_you_mean(str(key), fields) or f"there are {', '.join(fields)}"
                problems.append((str(key), f"this key is unknown; {hint}"))
            else:
                msgspec.convert({key: value}, Scheme)
        except msgspec.ValidationError as exc:
            hint = get_type_hints(Scheme, include_extras=True)[key]
            words = [word for word in get_args(hint) if isinstance(word, str) and word]
            wanted = getattr(hint, "__metadata__", (Meta(),))[0].description or f"one of {', '.join(words)}"
            wrong = f"expected {wanted}" if words or hint in (Header, Pointer) else str(exc).partition(" - at")[0]
            problems.append((key, f"{quote(key)}: {wrong}"))
    if not problems:
        made = msgspec.convert({**presets()[preset], **given}, Scheme)
        problems = _problems(made)
    if problems:
        raise SchemeError(problems)
    return made


def _problems(made: Scheme) -> list[tuple[str, str]]:
    content = set(_FIELD.findall(made.signed_content))
    times = (made.timestamp_header, made.timestamp_element, made.timestamp_json)
    where = next((name for name in ("timestamp_header", "timestamp_element") if getattr(made, name)), "")
    unknown = "is not known; there are body, timestamp, id, method, path, url"
    found = [("signed_content", f"{name} {unknown}") for name in sorted(content.difference(_FIELDS))]
    checks = (
        ("header", not made.header, '"header" is missing: the name of the header that holds the signature'),
        ("signed_content", "{body}" not in content and made.type == "hmac", "the signature must cover {body}"),
        ("signed_content", "{timestamp}" in content and not made.timed,
         "{timestamp} needs timestamp_header, timestamp_element or timestamp_json"),
        ("signed_content", "{id}" in content and not made.id_header, "{id} needs id_header"),
        ("timestamp_header", sum(map(bool, times)) > 1,
         "give one of timestamp_header, timestamp_element and timestamp_json"),
        (where, bool(where) and "{timestamp}" not in content,
         "a timestamp that is not signed protects nothing; put {timestamp} into signed_content"),
        ("type", made.type == "token" and made.timed, "a token signs no timestamp"),
    )  # fmt: skip
    return found + [(key, text) for key, wrong, text in checks if wrong]


def usable(scheme: Scheme, secret: str) -> bool:
    """Return whether a secret is written as the scheme says; one that is not never matches."""
    return _key(scheme, secret) is not None


def verify(scheme: Scheme, secrets: Sequence[str | None], request: SignedRequest, *, now: float) -> Verdict:
    """Check a request's signature against every secret (empty ones never match), then its age; `now`: POSIX s."""
    try:
        return _verify(scheme, secrets, request, now)
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError, RecursionError):
        # Whatever a hostile request makes fail above is not a signature.
        return Verdict(False, "malformed_signature")


def _verify(scheme: Scheme, secrets: Sequence[str | None], request: SignedRequest, now: float) -> Verdict:
    listed = [secrets] if isinstance(secrets, str) else secrets
    given = [(index, secret) for index, secret in enumerate(listed) if secret and secret.strip()]
    if not given:
        return Verdict(False, "no_secret")
    headers = _headers(scheme, request.headers)
    values = headers.get(scheme.header, ())
    if not values:
        return Verdict(False, "missing_signature")
    if len(values) > 1 or len(values[0]) > MAX_HEADER_CHARS:
        return Verdict(False, "malformed_signature")
    signatures, times = _split(scheme, values[0])
    ids = headers.get(scheme.id_header, ())
    if not signatures or len(ids) > 1:
        return Verdict(False, "malformed_signature")
    if scheme.timestamp_header:
        times = headers.get(scheme.timestamp_header, [])
    elif scheme.timestamp_json:
        times = [_pointer_text(request.body, scheme.timestamp_json)]
    if scheme.timed and (len(times) != 1 or not _DIGITS.fullmatch(times[0])):
        return Verdict(False, "malformed_timestamp")
    identity, timestamp = ids[0] if ids else "", times[0] if scheme.timed else ""
    matched = _match(scheme, given, signatures, _content(scheme, request, timestamp, identity))
    if isinstance(matched, str):
        return Verdict(False, matched)
    if scheme.timed:
        age = now - int(timestamp) / (1000 if scheme.timestamp_unit == "ms" else 1)
        if not abs(age) <= scheme.tolerance:
            return Verdict(False, "stale" if age > 0 else "future")
    if scheme.id_json:
        identity = _pointer_text(request.body, scheme.id_json)
    if not identity and scheme.timed:
        identity = hashlib.sha256(timestamp.encode() + b"." + request.body).hexdigest()[:32]
    event = headers.get(scheme.event_header, [""])[0]
    if scheme.event_json:
        event = _pointer_text(request.body, scheme.event_json)
    return Verdict(True, "ok", _bounded(identity), _bounded(event), matched)


def sign(scheme: Scheme, secret: str, request: SignedRequest, *, now: float) -> list[tuple[str, str]]:
    """Return the headers that make a request verifiable: signature, and timestamp and id where signed.

    An id that the request has is kept. Raises ValueError when the secret is not written as the scheme says.
    """
    key = _key(scheme, secret)
    if key is None:
        raise ValueError(f"the secret is not {scheme.secret_encoding}")
    added: list[tuple[str, str]] = []
    timestamp = str(int(now * (1000 if scheme.timestamp_unit == "ms" else 1)))
    if scheme.timestamp_json:
        timestamp = _pointer_text(request.body, scheme.timestamp_json)
    identity = _headers(scheme, request.headers).get(scheme.id_header, [""])[0]
    if scheme.id_header and not identity:
        identity = "msg_" + hashlib.sha256(f"{now}.".encode() + request.body).hexdigest()[:24]
        added.append((scheme.id_header, identity))
    if scheme.timestamp_header:
        added.append((scheme.timestamp_header, timestamp))
    if scheme.type == "token":
        return [*added, (scheme.header, scheme.prefix + secret)]
    content = _content(scheme, request, timestamp, identity)
    text = scheme.prefix + _encode(scheme, hmac.digest(key, content, scheme.algorithm))
    if scheme.timestamp_element:
        text = f"{scheme.timestamp_element}={timestamp}{scheme.separator}{text}"
    return [*added, (scheme.header, text)]


@cache
def _names(scheme: Scheme) -> dict[str, str]:
    """Return lower-case header → the scheme's own name for it, of the headers that a scheme reads."""
    others = scheme.timestamp_header, scheme.id_header, scheme.event_header
    read = {name.lower(): name for name in others if name}
    read |= {ALIASES[name]: name for name in read.values() if name in ALIASES}
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


def _match(scheme: Scheme, secrets: list[tuple[int, str]], signatures: list[str], content: bytes) -> int | Reason:
    """Return the index of the secret that matches, in constant time for each secret and signature."""
    if scheme.type == "token":
        given = [signature.encode("utf-8", "surrogatepass") for signature in signatures]
        expected = [(index, secret.encode()) for index, secret in secrets]
    else:
        given = [mac for signature in signatures if (mac := _decode(scheme, signature)) is not None]
        keys = [(index, _key(scheme, secret)) for index, secret in secrets]
        expected = [(index, hmac.digest(key, content, scheme.algorithm)) for index, key in keys if key]
    if not given:
        return "malformed_signature"
    matching = (index for index, right in expected for one in given if hmac.compare_digest(one, right))
    return next(matching, "bad_signature")


def _content(scheme: Scheme, request: SignedRequest, timestamp: str, identity: str) -> bytes:
    if scheme.signed_content == "{body}":
        return request.body
    path = request.url if request.url.startswith("/") else "/" + request.url.partition("://")[2].partition("/")[2]
    values = dict(zip(_FIELDS[1:], (timestamp, identity, request.method, path, request.url), strict=True))
    return b"".join(
        request.body if part == "{body}" else values.get(part, part).encode("latin-1")
        for part in _FIELD.split(scheme.signed_content)
    )


def _key(scheme: Scheme, secret: str) -> bytes | None:
    """Return a secret's bytes, or None for one that is not written as the scheme says: it never matches."""
    text = secret.removeprefix(scheme.secret_prefix)
    try:
        if scheme.secret_encoding == "base64":
            return base64.b64decode(text, validate=True) or None
        return (bytes.fromhex(text) if scheme.secret_encoding == "hex" else text.encode()) or None
    except ValueError:
        return None


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
            if isinstance(value, list) and not _INDEX.fullmatch(name):
                return ""
            value = value[int(name)] if isinstance(value, list) else value[name]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
