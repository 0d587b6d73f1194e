"""The inbox without a server, in a file of its own: runs and deliveries do not pay for each other.

deliveries.json   the newest deliveries, bodies included
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from director.models import Delivery
from director.store import base
from director.store.files import SafeStorage

KEEP = tuple(count // 10 for count in base.KEEP_DELIVERIES)


class Inbox:
    """Deliveries in a folder; each method runs in a transaction of `storage`."""

    def __init__(self, folder: Path) -> None:
        self.storage = SafeStorage(folder, "deliveries.json")

    @property
    def _rows(self) -> dict[str, Any]:
        rows: dict[str, Any] = self.storage.read().get("deliveries", {})
        return rows

    def record(self, entries: Sequence[tuple[Delivery, bytes | None]]) -> None:
        """As `Store.record`."""
        rows = dict(self._rows)
        for entry, body in entries:
            text = None if body is None else body.decode("latin-1")  # any bytes, as a text
            rows.setdefault(entry.id, {"entry": msgspec.to_builtins(entry), "body": text})
        for keep, verified in zip(KEEP, (True, False), strict=True):
            of = sorted(id_ for id_, row in rows.items() if (row["entry"]["secret"] is not None) is verified)
            for id_ in of[: max(0, len(of) - keep)]:
                del rows[id_]
        self.storage.write({"deliveries": rows})

    def list(self, which: base.DeliveryFilter) -> tuple[tuple[Delivery, ...], str | None]:
        """As `Store.deliveries`."""
        found: list[Delivery] = []
        for id_ in sorted(self._rows, reverse=True):
            entry = msgspec.convert(self._rows[id_]["entry"], Delivery)
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
        named = [(entry["secret"] is not None, id_) for id_, entry in entries if entry["delivery"] == name]
        row = rows.get(name) or rows.get(max(named, default=(False, ""))[1])
        if row is None:
            raise base.no_delivery(name)
        body = row["body"]
        return msgspec.convert(row["entry"], Delivery), None if body is None else body.encode("latin-1")
