"""YAML as values that know where they stand: PyYAML's one home.

PyYAML's own loader keeps the last of duplicate keys silently, forgets positions, and follows aliases and
brackets without a bound. So it only composes here, after a look at how deep the file is; every alias is
then written out within bounds.

Three readings differ from PyYAML's on purpose. A key is its literal text (`on:`, `NO:` and `123:` are
names, not booleans and numbers); so is a time or a date (`12:30` is not 750); and numbers must fit into JSON.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import yaml

MAX_NAME = 200
MAX_DEPTH = 100
MAX_NODES = 100_000
"""Of one file with every alias written out."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONSTRUCTOR = yaml.constructor.SafeConstructor()
_STANDARD = "tag:yaml.org,2002:"
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_QUOTED_THEN_MORE = re.compile(r""":\s+(?:"[^"]*"|'[^']*')\s*[^\s,#}\]]""")
_STARTS_WITH_TAG = re.compile(r":\s+!")
_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


class Malformed(Exception):
    """A file that does not parse. Its text never holds content of the file, which may be a secret."""

    def __init__(self, text: str, line: int = 1, column: int = 1) -> None:
        super().__init__(text, line, column)
        self.text, self.line, self.column = text, line, column


class Place:
    """A value's place: line and column from 1. `slips` are places in it, and what is wrong there."""

    line: int = 1
    column: int = 1
    slips: tuple[tuple[Place, str], ...] = ()


class Text(str, Place):
    """A scalar as it is written; `tag` is what YAML takes it for."""

    tag: str = ""

    @property
    def is_null(self) -> bool:
        """True for nothing, `~` and `null`."""
        return self.tag == _STANDARD + "null"

    def replaced(self, text: str) -> Text:
        """Return another text at the same place."""
        made = Text(text)
        made.line, made.column, made.tag = self.line, self.column, self.tag
        return made


class List(list["Value"], Place):
    """Items in order."""


class Map(dict[Any, "Value"], Place):
    """Keys, each a `Text`, and values in order, `<<` merged in."""

    def key(self, name: str) -> Text:
        """Return the key that is written so, which knows its place."""
        found: Text = next(key for key in self if key == name)
        return found


Value = Text | List | Map
Slips = list[tuple[Place, str]]
Report = Callable[[Place, str], None]


def parse(data: bytes) -> Value | None:
    """Return what a file holds, None when it is empty.

    Raises:
        Malformed: it does not parse, or is over a limit. Nothing else is ever raised.
    """
    text = _decode(data)
    try:
        _check_depth(text)
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as exc:
        raise _malformed(exc, text) from exc
    except (yaml.YAMLError, ValueError, OverflowError) as exc:
        raise Malformed("this is not YAML") from exc
    return None if root is None else _Builder().value(root, 1)


def plain(value: Value, report: Report) -> Any:
    """Return the JSON value that stands there; what cannot be one is reported and read as None."""
    for place, text in value.slips:
        report(place, text)
    if isinstance(value, Map):
        return {str(key): plain(inner, report) for key, inner in value.items()}
    if isinstance(value, List):
        return [plain(inner, report) for inner in value]
    kind = value.tag.removeprefix(_STANDARD)
    if kind in ("str", "timestamp", "value", "merge") or (kind in ("int", "float") and ":" in value):
        return str(value)
    if kind not in ("null", "bool", "int", "float"):
        if not value.slips:
            report(value, f"the tag !!{quote(kind)[1:-1]} means nothing here")
        return None
    try:
        made = getattr(_CONSTRUCTOR, f"construct_yaml_{kind}")(yaml.ScalarNode(value.tag, str(value)))
    except (ValueError, LookupError, OverflowError):
        report(value, f"{quote(value)} cannot be read as {kind}")
        return None
    if kind == "int" and not -(1 << 63) <= made < 1 << 64:
        report(value, "the number is too large for JSON; quote it")
    elif kind == "float" and not math.isfinite(made):
        report(value, f"{quote(value)} is no number in JSON; quote it")
    else:
        return made
    return None


def quote(text: str, limit: int = 80) -> str:
    """Return a text for a message: in double quotes, one line, not endless."""
    if len(text) > limit:
        text = text[:limit] + "…"
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + '"'


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `did you mean "…"?`, or nothing."""
    known = list(known)
    same = [other for other in known if other.lower() == name.lower()]
    found = same or difflib.get_close_matches(name[:MAX_NAME], known, n=1)
    return f"did you mean {quote(found[0])}?" if found else ""


class _Builder:
    """Writes a graph of nodes out as values; what has no end is too deep."""

    def __init__(self) -> None:
        self.count = 0

    def value(self, node: yaml.Node, depth: int) -> Value:
        self.check(node, depth)
        made: Value
        slips: Slips = []
        if isinstance(node, yaml.MappingNode):
            made = Map()
            lines: dict[str, int] = {}
            for key, value in self.pairs(node, depth, slips):
                if key not in made:
                    made[key], lines[key] = self.value(value, depth + 1), key.line
                else:
                    slips.append((key, f"{quote(key)} is given twice, first in line {lines[key]}"))
        elif isinstance(node, yaml.SequenceNode):
            made = List(self.value(item, depth + 1) for item in node.value)
        else:
            made = self.text(node)
        self.mark(made, node)
        if not node.tag.startswith(_STANDARD):
            slips.append((made, _foreign(node)))
        made.slips = tuple(slips)
        return made

    def pairs(self, node: yaml.MappingNode, depth: int, slips: Slips) -> Iterator[tuple[Text, yaml.Node]]:
        """Yield own keys, then what `<<` merges and is not there yet."""
        self.check(node, depth)
        own: set[str] = set()
        merged: list[yaml.Node] = []
        for key, value in node.value:
            place = self.mark(Place(), key)
            if not isinstance(key, yaml.ScalarNode) or (key.value == "" and key.style is None):
                slips.append((place, "a key must be one plain text"))
            elif not key.tag.startswith(_STANDARD):
                slips.append((place, _foreign(key)))
            elif key.tag == _STANDARD + "merge":
                merged.extend(value.value if isinstance(value, yaml.SequenceNode) else [value])
            else:
                own.add(key.value)
                yield self.mark(self.text(key), key), value
        for other in merged:
            if not isinstance(other, yaml.MappingNode):
                slips.append((self.mark(Place(), other), '"<<" merges mappings only'))
                continue
            for text, value in self.pairs(other, depth + 1, slips):
                if text not in own:
                    own.add(text)
                    yield text, value

    @staticmethod
    def text(node: yaml.Node) -> Text:
        text = Text(node.value)
        text.tag = node.tag
        return text

    @staticmethod
    def mark(made: Any, node: yaml.Node) -> Any:
        made.line, made.column = node.start_mark.line + 1, node.start_mark.column + 1
        return made

    def check(self, node: yaml.Node, depth: int) -> None:
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        self.count += 1
        if self.count > MAX_NODES:
            raise Malformed(f"more than {MAX_NODES} values, with all aliases (*) written out", line, column)
        if depth > MAX_DEPTH + 1:
            raise Malformed(f"nested more than {MAX_DEPTH} deep, with aliases (*) written out", line, column)
        if isinstance(node, yaml.ScalarNode) and not node.value.isascii():
            try:
                node.value.encode()
            except UnicodeEncodeError as exc:  # an escaped surrogate, which only the parser in Python lets through
                raise Malformed("this text is not Unicode", line, column) from exc


def _foreign(node: yaml.Node) -> str:
    """Say what is wrong with a tag that is not YAML's own."""
    if isinstance(node, yaml.ScalarNode):
        return f"{quote(f'{node.tag} {node.value}'.strip())} must be quoted: YAML takes a leading ! for a tag"
    return f"the tag {quote(node.tag)} means nothing here"


def _decode(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        before = data[: exc.start].decode("utf-8", "replace")
        raise Malformed("this byte is not UTF-8", *_position(before)) from exc
    if wrong := _UNPRINTABLE.search(text):
        what = f"the control character U+{ord(wrong[0]):04X} cannot stand in YAML"
        raise Malformed(what, *_position(text[: wrong.start()]))
    return text


def _check_depth(text: str) -> None:
    """Look at how deep a file is before it is composed, which recurses (in C, without a limit)."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                mark: Any = event.start_mark
                raise Malformed(f"nested more than {MAX_DEPTH} deep", mark.line + 1, mark.column + 1)


def _position(before: str) -> tuple[int, int]:
    lines = _LINE_END.split(before)
    return len(lines), len(lines[-1]) + 1


def _malformed(exc: yaml.MarkedYAMLError, text: str) -> Malformed:
    """Say it in PyYAML's words, with the usual slip where one is in sight."""
    mark = exc.problem_mark or exc.context_mark
    if mark is None:
        return Malformed("this is not YAML")
    lines = _LINE_END.split(text)
    line = lines[mark.line] if mark.line < len(lines) else ""
    found = line[mark.column : mark.column + 1]
    problem = exc.problem or ""
    if isinstance(exc, yaml.composer.ComposerError):  # its words quote names, which may be secrets
        what = "this alias (*) names no anchor (&) above it"
        if problem.startswith("but"):
            what = "a second document starts here; a file holds one"
        elif problem.startswith("second"):
            what = "this anchor (&) is there already"
    elif _STARTS_WITH_TAG.search(line):
        what = "put the value in quotes: YAML takes a leading ! for a tag"
    elif _QUOTED_THEN_MORE.search(line):
        what = "more follows a quoted text; put the whole value in quotes"
    elif found == "\t":
        what = "a tab; YAML is indented with spaces"
    elif found in ("@", "`", "%") and "cannot start" in problem:
        what = f"a value that starts with {found} must be quoted"
    else:
        what = " ".join(part for part in ("not YAML:", exc.context and exc.context + ",", problem) if part)
    return Malformed(quote(what, 300)[1:-1], mark.line + 1, mark.column + 1)
