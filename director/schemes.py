"""Signature schemes: data that says where a signature is, what it covers and how it is written. Pure.

`schemes.yml` holds each provider's; a source in a workflow file names one, and may change any key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from director import yamltree
from director.yamltree import did_you_mean, quote

FIELD = re.compile(r"(\{[^{}]*\})")
FIELDS = ("{body}", "{timestamp}", "{id}", "{method}", "{path}", "{url}")


class SchemeError(ValueError):
    """A scheme that cannot be used: `problems` are pairs of a key and what is wrong with it."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(text for _, text in problems))
        self.problems = list(problems)


Header = Annotated[str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]*$", description="a header's name")]
Pointer = Annotated[str, Meta(pattern="^(/|$)", description="a JSON pointer such as /id")]
Pointers = Annotated[
    Pointer | tuple[Pointer, ...], Meta(description="a JSON pointer such as /id, or a list of them")
]
"""Into the body, a form's fields too; the first that leads to a text or a number counts."""


Handshake = Literal[
    "", "github-ping", "slack-url-verification", "discord-ping", "zoom-url-validation", "meta-hub-challenge"
]


class Scheme(msgspec.Struct, frozen=True, kw_only=True):
    """How a source signs; the keys are those of a source in YAML."""

    type: Literal["hmac", "token", "ed25519"] = "hmac"
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
    id_json: Pointers = ""
    event_header: Header = ""
    event_json: Pointers = ""
    event_keys: tuple[str, ...] = ()
    """The first of these that the body has is the event."""
    handshake: Handshake = ""

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
            wrong = (
                f"expected {wanted}"
                if words or hint in (Header, Pointer, Pointers)
                else str(exc).partition(" - at")[0]
            )
            problems.append((key, f"{quote(key)}: {wrong}"))
    if not problems:
        made = msgspec.convert({**presets()[preset], **given}, Scheme)
        problems = _problems(made)
    if problems:
        raise SchemeError(problems)
    return made


def _problems(made: Scheme) -> list[tuple[str, str]]:
    content = set(FIELD.findall(made.signed_content))
    times = (made.timestamp_header, made.timestamp_element, made.timestamp_json)
    where = next((name for name in ("timestamp_header", "timestamp_element") if getattr(made, name)), "")
    unknown = "is not known; there are body, timestamp, id, method, path, url"
    found = [("signed_content", f"{name} {unknown}") for name in sorted(content.difference(FIELDS))]
    checks = (
        ("header", not made.header, '"header" is missing: the name of the header that holds the signature'),
        ("signed_content", "{body}" not in content and made.type != "token", "the signature must cover {body}"),
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
