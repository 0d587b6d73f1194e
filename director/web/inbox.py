"""The inbox: what became of each delivery, gathered and written beside the answers, which never wait for it.

A kill loses what was gathered last (GATHER_S); runs are written before the answer, as ever. What came while the
store was away is written once it is back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from director import log
from director.errors import DirectorError
from director.models import Delivery
from director.store.shapes import KEEP_DELIVERIES

if TYPE_CHECKING:
    from director.web.service import Service

GATHER_S = 0.05
RETRY_S = 1.0
MAX_BODY_BYTES = 64 << 10
BATCH = 100
BATCH_BYTES = 128 << 10
"""Ten times as much at once costs Redis a third more for each, and what is asked meanwhile waits longer."""
Pending = deque[tuple[Delivery, bytes | None]]

logger = log.get("director.inbox")


class Inbox:
    """Gathers deliveries; one task writes them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._pending: tuple[Pending, Pending] = (
            deque(maxlen=KEEP_DELIVERIES[0]),
            deque(maxlen=KEEP_DELIVERIES[1]),
        )
        """Verified and refused ones: the latter push none of the former out."""
        self._writing: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    def add(self, entry: Delivery, body: bytes | None) -> None:
        """Keep a delivery for the next write; the body of a refused or a large one stays nowhere."""
        verified = entry.secret is not None
        kept = body if verified and body is not None and len(body) <= MAX_BODY_BYTES else None
        self._pending[0 if verified else 1].append((entry, kept))
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_soon())

    async def flush(self) -> None:
        """Write what is gathered. Raises StoreUnavailable; it stays gathered then."""
        async with self._lock:
            for pending in self._pending:
                while batch := self._batch(pending):
                    await self._service.do(self._service.store.record(batch))
                    # What came meanwhile may have pushed some of these out already.
                    for entry in batch:
                        if pending and pending[0] is entry:
                            pending.popleft()

    @staticmethod
    def _batch(pending: Pending) -> list[tuple[Delivery, bytes | None]]:
        batch, size = [], 0
        for entry in pending:
            batch.append(entry)
            size += len(entry[1] or b"")
            if len(batch) == BATCH or size >= BATCH_BYTES:
                break
        return batch

    async def _write_soon(self) -> None:
        wait_s = GATHER_S
        while any(self._pending):
            await asyncio.sleep(wait_s)
            try:
                await self.flush()
            except Exception as exc:  # noqa: BLE001 - a bug must not end the inbox
                if wait_s == GATHER_S:
                    reason = str(exc) if isinstance(exc, DirectorError) else repr(exc)
                    logger.warning("inbox.unwritten", reason=reason, waiting=sum(map(len, self._pending)))
                wait_s = RETRY_S
        self._writing = None

    async def close(self) -> None:
        """Write the rest, if the store lets us."""
        if self._writing is not None:
            self._writing.cancel()
        try:
            await self.flush()
        except DirectorError as exc:
            logger.warning("inbox.lost", reason=str(exc), lost=sum(map(len, self._pending)))
