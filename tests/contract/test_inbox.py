"""The inbox: what stays of deliveries, on every store."""

import pytest

from director.errors import NotFound
from director.models import Delivery, DeliveryRun
from director.store.shapes import KEEP_DELIVERIES, DeliveryFilter
from director.store.tiny import TinyStore


def entry(number, **more):
    """Return a verified delivery; a larger number came later."""
    given = {
        "id": f"01900000-0000-7000-8000-{number:012d}",
        "at": "2030-01-31T08:00:00.000Z",
        "source": "github",
        "event": "push",
        "delivery": f"d-{number}",
        "verdict": "accepted",
        "status": 202,
        "secret": "SECRET",
        "runs": (DeliveryRun(id="r", workflow="w"),),
        "size": 2,
        "content_type": "application/json",
    }
    return Delivery(**given | more)


def rejected(number, **more):
    return entry(number, verdict="rejected", status=401, secret=None, runs=(), reason="stale: …", **more)


def record(store, *entries, body=b"{}"):
    store.do(store.record([(one, body) for one in entries]))


def listed(store, **which):
    found, following = store.do(store.deliveries(DeliveryFilter(**which)))
    return [int(one.id[-12:]) for one in found], following


def test_what_was_recorded_is_read_as_it_was(store):
    one, two = entry(1), rejected(2)
    store.do(store.record([(one, b'{"a": "\xc3\xa9"}'), (two, None)]))
    assert store.do(store.deliveries(DeliveryFilter())) == ((two, one), None)
    assert store.do(store.delivery(one.id)) == (one, b'{"a": "\xc3\xa9"}')
    assert store.do(store.delivery(two.id)) == (two, None)


def test_a_body_may_be_any_bytes(store):
    record(store, entry(1), body=bytes(range(256)))
    assert store.do(store.delivery("d-1"))[1] == bytes(range(256))


def test_an_empty_body_is_one(store):
    """A form without fields: it was accepted, so it can be played again."""
    record(store, entry(1, size=0), body=b"")
    assert store.do(store.delivery("d-1"))[1] == b""


def test_recording_twice_changes_nothing(store):
    record(store, entry(1))
    record(store, entry(1, verdict="ignored"), entry(2))
    assert store.do(store.delivery("d-1"))[0].verdict == "accepted"
    assert listed(store) == ([2, 1], None)


def test_listings_are_filtered_and_paged(store):
    record(store, *(entry(n, source="stripe" if n % 2 else "github") for n in range(6)), rejected(6))
    assert listed(store, source="stripe", limit=2)[0] == [5, 3]
    cursor = listed(store, source="stripe", limit=2)[1]
    assert listed(store, source="stripe", limit=2, after=cursor) == ([1], None)
    assert listed(store, verdict="rejected") == ([6], None)
    assert listed(store, verdict="rejected", source="stripe") == ([], None)


def test_the_newest_stay_and_refused_ones_push_no_verified_one_out(store):
    verified, refused = (n // 10 if isinstance(store, TinyStore) else n for n in KEEP_DELIVERIES)
    for first in range(0, verified + 50, 50):
        record(store, *(entry(n) for n in range(first, first + 50)))
    record(store, *(rejected(n) for n in range(5000, 5000 + refused + 5)), body=None)
    found = listed(store, limit=2000)[0]
    assert [n for n in found if n < 5000] == list(range(verified + 49, 49, -1))
    assert [n for n in found if n >= 5000] == list(range(5004 + refused, 5004, -1))
    with pytest.raises(NotFound):
        store.do(store.delivery("d-49"))


def test_the_senders_id_finds_the_newest_verified_one(store):
    record(store, entry(1, delivery="same"), entry(2, delivery="same"), rejected(3, delivery="same"))
    assert store.do(store.delivery("same"))[0].id == entry(2).id
    with pytest.raises(NotFound, match="inbox"):
        store.do(store.delivery("other"))


def test_nothing_stays_of_a_body_that_has_gone(store):
    limit = KEEP_DELIVERIES[0]
    record(store, entry(1), body=b"first-body")
    for first in range(2, limit + 2, 50):
        record(store, *(entry(n) for n in range(first, first + 50)))
    with pytest.raises(NotFound):
        store.do(store.delivery("d-1"))
    if isinstance(store, TinyStore):
        assert b"first-body" not in b"".join(file.read_bytes() for file in store._folder.rglob("*.json"))
    else:
        assert not store.do(store.ask("EXISTS", f"{store.prefix}delivery:{entry(1).id}"))
