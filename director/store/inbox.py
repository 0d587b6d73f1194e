"""The inbox without a server, in a file of its own: a change of a run does not write it, nor the other way.

deliveries.json   the newest deliveries, bodies included
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import msgspec

from director.models import Delivery
from director.store import base, shapes
from director.store.files import SafeStorage

KEEP = tuple(count // 10 for count in shapes.KEEP_DELIVERIES)


class Row(TypedDict):
    """A delivery's document."""

    entry: Delivery
    body: str | None
    """Any bytes, as a text (latin-1)."""


class Inbox:
    """Deliveries in a folder; each method runs in a transaction of `storage`."""

    def __init__(self, folder: Path) -> None:
        self.storage = SafeStorage(folder, "deliveries.json")

    @property
    def _rows(self) -> dict[str, Row]:
        # Looked at each time, 50 µs: what somebody has edited by hand is not ours, and said to be so.
        return msgspec.convert(self.storage.read().get("deliveries", {}), dict[str, Row])

    def record(self, entries: Sequence[tuple[Delivery, bytes | None]]) -> None:
        """As `Store.record`."""
        rows = self._rows
        for entry, body in entries:
            rows.setdefault(entry.id, Row(entry=entry, body=None if body is None else body.decode("latin-1")))
        for keep, verified in zip(KEEP, (True, False), strict=True):
            of = sorted(id_ for id_, row in rows.items() if (row["entry"].secret is not None) is verified)
            for id_ in of[: max(0, len(of) - keep)]:
                del rows[id_]
        self.storage.write({"deliveries": msgspec.to_builtins(rows)})

    def list(self, which: shapes.DeliveryFilter) -> tuple[tuple[Delivery, ...], str | None]:
        """As `Store.deliveries`."""
        found: list[Delivery] = []
        for id_, row in sorted(self._rows.items(), reverse=True):
            entry = row["entry"]
            if (
                (which.after and id_ >= which.after)
                or (which.source and entry.source != which.source)
                or (which.verdict and entry.verdict != which.verdict)
            ):
                continue
            if len(found) == which.limit:
                return tuple(found), found[-1].id
            found.append(entry)
        return tuple(found), None

    def get(self, name: str) -> tuple[Delivery, bytes | None]:
        """As `Store.delivery`."""
        rows = self._rows
        entries = ((id_, row["entry"]) for id_, row in rows.items())
        named = [(entry.secret is not None, id_) for id_, entry in entries if entry.delivery == name]
        row = rows.get(name) or rows.get(max(named, default=(False, ""))[1])
        if row is None:
            raise base.no_delivery(name)
        body = row["body"]
        return row["entry"], None if body is None else body.encode("latin-1")
