"""YAML as a tree that knows where everything stands: PyYAML's one home.

PyYAML's own loader keeps the last of duplicate keys silently, forgets positions, and follows
aliases without a bound. So only its parser is used here, one event after the other: a file that is
too deep, too large or without an end is refused before it costs anything, whatever its bytes are.

Three readings differ from PyYAML's on purpose. A key is its literal text (`on:`, `NO:` and `123:`
are names, not booleans and numbers); so is a time or a date (`12:30` is not 750); and numbers must
fit into JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

MAX_DEPTH = 100
MAX_NODES = 100_000
"""Of one file with every alias written out."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = yaml.resolver.Resolver()
_CONSTRUCTOR = yaml.constructor.SafeConstructor()
_STANDARD = "tag:yaml.org,2002:"
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_QUOTED_THEN_MORE = re.compile(r""":\s+(?:"[^"]*"|'[^']*')\s*[^\s,#}\]]""")
_STARTS_WITH_TAG = re.compile(r":\s+!")


class Malformed(Exception):
    """A file that does not parse.

    Args:
        text: what is wrong; never holds content of the file, which may be a secret.
        line: from 1.
        column: from 1.
    """

    def __init__(self, text: str, line: int = 1, column: int = 1) -> None:
        super().__init__(text, line, column)
        self.text, self.line, self.column = text, line, column


class Node:
    """A place in a file; one of the three below. An alias is the node that it names."""

    __slots__ = ("column", "height", "line", "size", "tag")

    def __init__(self, line: int, column: int, tag: str | None) -> None:
        self.line, self.column = line, column
        self.tag = tag
        """As written; None when nothing is, or `!`."""
        self.size = self.height = 1
        """With every alias written out."""


class Scalar(Node):
    """A text, with the tag that it resolves to."""

    __slots__ = ("plain", "text")

    def __init__(self, line: int, column: int, tag: str | None, text: str, plain: bool) -> None:
        if tag is None:
            tag = _RESOLVER.resolve(yaml.ScalarNode, text, (plain, not plain))  # type: ignore[no-untyped-call]
        super().__init__(line, column, tag)
        self.text, self.plain = text, plain

    @property
    def is_null(self) -> bool:
        return self.tag == _STANDARD + "null"


class List(Node):
    """Items in order."""

    __slots__ = ("items",)

    def __init__(self, line: int, column: int, tag: str | None) -> None:
        super().__init__(line, column, tag)
        self.items: list[Node] = []


class Map(Node):
    """Keys and values in order, as written: duplicates and `<<` are still there."""

    __slots__ = ("pairs",)

    def __init__(self, line: int, column: int, tag: str | None) -> None:
        super().__init__(line, column, tag)
        self.pairs: list[tuple[Node, Node]] = []


Report = Callable[[Node, str], None]
Entries = dict[str, tuple[Scalar, Node]]


def parse(data: bytes) -> Node | None:
    """Return the root of a file, None when it is empty.

    Raises:
        Malformed: it does not parse, or is over a limit. Nothing else is ever raised.
    """
    text = _decode(data)
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as exc:
        raise _malformed(exc, text) from exc
    except (yaml.YAMLError, ValueError, OverflowError) as exc:
        raise Malformed("this is not YAML") from exc
    return builder.root


def pairs(node: Map, report: Report) -> Iterator[tuple[Scalar, Node]]:
    """Yield keys and values, own ones first, then what `<<` merges; duplicates of own keys stay."""
    own: set[str] = set()
    merges: list[Node] = []
    for key, value in node.pairs:
        if not isinstance(key, Scalar) or (key.plain and key.is_null and key.text == ""):
            report(key, "a key must be one plain text")
        elif (tag := foreign_tag(key)) is not None:
            report(key, tag)
        elif key.tag == _STANDARD + "merge":
            if merges:
                report(key, '"<<" is given twice; write <<: [*one, *other]')
            merges.extend(value.items if isinstance(value, List) else [value])
        else:
            own.add(key.text)
            yield key, value
    for merged in merges:
        if not isinstance(merged, Map):
            report(merged, '"<<" merges mappings only')
            continue
        for key, value in pairs(merged, report):
            if key.text not in own:
                own.add(key.text)
                yield key, value


def entries(node: Map, report: Report) -> Entries:
    """Return key → (its node, its value), reporting duplicate keys."""
    found: Entries = {}
    for key, value in pairs(node, report):
        if key.text in found:
            report(key, f"{quote(key.text)} is given twice, first in line {found[key.text][0].line}")
        else:
            found[key.text] = key, value
    return found


def foreign_tag(node: Node) -> str | None:
    """Return what is wrong with a node's tag, None when nothing is."""
    if node.tag is None or node.tag.startswith(_STANDARD):
        return None
    if isinstance(node, Scalar):
        return f"{quote(f'{node.tag} {node.text}'.strip())} must be quoted: YAML takes a leading ! for a tag"
    return f"the tag {quote(node.tag)} means nothing here"


def to_python(node: Node, report: Report) -> Any:
    """Return the JSON value that a node stands for; what cannot be one is reported and read as None."""
    if (tag := foreign_tag(node)) is not None:
        report(node, tag)
        return None
    if isinstance(node, Map):
        return {name: to_python(value, report) for name, (_, value) in entries(node, report).items()}
    if isinstance(node, List):
        return [to_python(item, report) for item in node.items]
    assert isinstance(node, Scalar)
    return _scalar(node, report)


def quote(text: str, limit: int = 80) -> str:
    """Return a text for a message: in double quotes, one line, not endless."""
    if len(text) > limit:
        text = text[:limit] + "…"
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + '"'


def _scalar(node: Scalar, report: Report) -> str | int | float | bool | None:
    kind = (node.tag or "").removeprefix(_STANDARD)
    plain = yaml.ScalarNode(node.tag or "", node.text)
    try:
        if kind == "null":
            return None
        if kind == "bool":
            return bool(_CONSTRUCTOR.construct_yaml_bool(plain))
        if kind == "int" and ":" not in node.text:
            whole = int(_CONSTRUCTOR.construct_yaml_int(plain))
            if -(1 << 63) <= whole < 1 << 64:
                return whole
            report(node, "the number is too large for JSON; quote it")
            return None
        if kind == "float" and ":" not in node.text:
            number = float(_CONSTRUCTOR.construct_yaml_float(plain))
            if math.isfinite(number):
                return number
            report(node, f"{quote(node.text)} is no number in JSON; quote it")
            return None
    except (ValueError, LookupError, OverflowError):
        report(node, f"{quote(node.text)} cannot be read as {kind}")
        return None
    if kind not in ("str", "int", "float", "timestamp", "value", "merge"):
        report(node, f"the tag !!{quote(kind)[1:-1]} means nothing here")
    return node.text


class _Builder:
    """Puts events together. Works without recursion, so that no depth can hurt."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.documents = 0
        self.open: list[tuple[List | Map, list[Node], str | None]] = []
        self.anchors: dict[str, Node] = {}

    def take(self, event: Any) -> None:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, yaml.ScalarEvent):
            self.scalar(event, line, column)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(self.open) >= MAX_DEPTH:
                raise Malformed(f"nested more than {MAX_DEPTH} deep", line, column)
            kind = Map if isinstance(event, yaml.MappingStartEvent) else List
            node = kind(line, column, None if event.tag == "!" else event.tag)
            if event.anchor is not None:
                self.anchors[event.anchor] = node
            self.open.append((node, [], event.anchor))
        elif isinstance(event, yaml.CollectionEndEvent):
            node, children, _ = self.open.pop()
            if isinstance(node, List):
                node.items = children
            else:
                node.pairs = list(zip(children[::2], children[1::2], strict=True))
            self.add(node, node.line, node.column)
        elif isinstance(event, yaml.AliasEvent):
            self.alias(event.anchor, line, column)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise Malformed("a second document starts here; a file holds one", line, column)

    def scalar(self, event: Any, line: int, column: int) -> None:
        try:
            event.value.encode()
        except UnicodeEncodeError as exc:  # an escaped surrogate, which only the parser in Python lets through
            raise Malformed("this text is not Unicode", line, column) from exc
        tag = None if event.tag == "!" else event.tag
        node = Scalar(line, column, tag, event.value, plain=event.implicit[0])
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        self.add(node, line, column)

    def alias(self, name: str | None, line: int, column: int) -> None:
        node = self.anchors.get(name or "")
        if node is None:
            raise Malformed("this alias (*) names no anchor (&) above it", line, column)
        if any(node is other for other, _, _ in self.open):
            raise Malformed("this alias (*) stands inside of what it names, which has no end", line, column)
        self.add(node, line, column)

    def add(self, node: Node, line: int, column: int) -> None:
        if not self.open:
            self.root = node
            return
        parent, children, _ = self.open[-1]
        children.append(node)
        parent.size += node.size
        parent.height = max(parent.height, node.height + 1)
        if parent.size > MAX_NODES:
            raise Malformed(f"more than {MAX_NODES} values, with all aliases (*) written out", line, column)
        if len(self.open) + node.height > MAX_DEPTH + 1:
            raise Malformed(f"nested more than {MAX_DEPTH} deep, with aliases (*) written out", line, column)


def _decode(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        before = data[: exc.start].decode("utf-8", "replace")
        raise Malformed("this byte is not UTF-8", *_position(before)) from exc
    wrong = _UNPRINTABLE.search(text)
    if wrong:
        raise Malformed(
            f"the control character U+{ord(wrong[0]):04X} cannot stand in YAML",
            *_position(text[: wrong.start()]),
        )
    return text


def _position(before: str) -> tuple[int, int]:
    lines = re.split("\r\n|[\n\r\x85\u2028\u2029]", before)
    return len(lines), len(lines[-1]) + 1


def _malformed(exc: yaml.MarkedYAMLError, text: str) -> Malformed:
    """Say it in PyYAML's words, with the usual slip where one is in sight."""
    mark = exc.problem_mark or exc.context_mark
    if mark is None:
        return Malformed("this is not YAML")
    lines = re.split("\r\n|[\n\r\x85\u2028\u2029]", text)
    line = lines[mark.line] if mark.line < len(lines) else ""
    found = line[mark.column : mark.column + 1]
    if _STARTS_WITH_TAG.search(line):
        what = "put the value in quotes: YAML takes a leading ! for a tag"
    elif _QUOTED_THEN_MORE.search(line):
        what = "more follows a quoted text; put the whole value in quotes"
    elif found == "\t":
        what = "a tab; YAML is indented with spaces"
    elif found in ("@", "`", "%") and "cannot start" in (exc.problem or ""):
        what = f"a value that starts with {found} must be quoted"
    else:
        what = " ".join(part for part in ("not YAML:", exc.context and exc.context + ",", exc.problem) if part)
    return Malformed(quote(what, 300)[1:-1], mark.line + 1, mark.column + 1)
