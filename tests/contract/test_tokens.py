"""The contract of access tokens: known by their hash, noted when used, gone when revoked."""

import pytest

from director import access
from director.errors import Conflict, NotFound
from director.models import Presented, time_text
from director.store.shapes import NewToken

DAY_MS = 86_400_000
ONE = NewToken(id="00000001", digest=access.digest("one"), scope="run", workflows=("a.B", "c"), name="CI ü")
TWO = NewToken(id="00000002", digest=access.digest("two"), scope="read", expires_in_ms=DAY_MS)


def ask(store, token):
    return store.do(store.authenticate(access.digest(token) if token else ""))


def test_a_token_is_known_by_its_hash(store, clock):
    made = store.do(store.add_token(ONE))
    assert (made.id, made.scope, made.workflows, made.name) == ("00000001", "run", ("a.B", "c"), "CI ü")
    assert (made.created_at, made.expires_at, made.last_used_at) == (time_text(clock.now), None, None)
    found = ask(store, "one")
    assert (found.token.id, found.expired, found.any_token) == ("00000001", False, True)
    assert ask(store, "two") == ask(store, "") == Presented(any_token=True)


def test_without_tokens_nothing_is_known(store):
    assert store.do(store.tokens()) == ()
    assert ask(store, "one") == ask(store, "") == Presented()


def test_added_twice_it_is_one_and_as_it_was(store, clock):
    first = store.do(store.add_token(TWO))
    clock.pass_s(5)
    ask(store, "two")
    assert store.do(store.add_token(TWO)) == first
    assert [token.id for token in store.do(store.tokens())] == ["00000002"]


def test_an_id_is_not_given_twice(store):
    store.do(store.add_token(ONE))
    with pytest.raises(Conflict):
        store.do(store.add_token(NewToken(id=ONE.id, digest=TWO.digest, scope="admin")))
    assert ask(store, "two").token is None
    assert ask(store, "one").token.scope == "run"


def test_the_oldest_is_listed_first(store, clock):
    store.do(store.add_token(TWO))
    clock.pass_s(1)
    store.do(store.add_token(ONE))
    assert [token.id for token in store.do(store.tokens())] == ["00000002", "00000001"]


def test_an_expired_token_is_known_and_counts_no_more(store, clock):
    made = store.do(store.add_token(TWO))
    assert made.expires_at == time_text(clock.now + DAY_MS)
    clock.now += DAY_MS - 1
    used = ask(store, "two")
    assert (used.expired, used.any_token) == (False, True)
    clock.now += 1
    late = ask(store, "two")
    assert (late.token, late.expired, late.any_token) == (used.token, True, True)
    assert ask(store, "") == Presented(any_token=True)
    assert store.do(store.tokens()) == (used.token,)


def test_a_use_is_noted_once_a_minute(store, clock):
    store.do(store.add_token(ONE))
    began = clock.now
    for after_s, noted_s in ((0, 0), (59.999, 0), (0.001, 60), (1, 60)):
        clock.pass_s(after_s)
        assert ask(store, "one").token.last_used_at == time_text(began + noted_s * 1000)
        assert store.do(store.tokens())[0].last_used_at == time_text(began + noted_s * 1000)


def test_a_revoked_token_is_unknown(store):
    store.do(store.add_token(ONE))
    store.do(store.add_token(TWO))
    store.do(store.revoke("00000001"))
    assert ask(store, "one") == Presented(any_token=True)
    assert [token.id for token in store.do(store.tokens())] == ["00000002"]
    for unknown in ("00000001", "x", ""):
        with pytest.raises(NotFound):
            store.do(store.revoke(unknown))
    store.do(store.revoke("00000002"))
    assert ask(store, "two") == Presented()


def test_revoked_it_may_be_added_again(store):
    store.do(store.add_token(ONE))
    store.do(store.revoke(ONE.id))
    store.do(store.add_token(ONE))
    assert ask(store, "one").token.last_used_at is not None
