"""The inbox: every delivery with its verdict and the exact reason, and no secret in it."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import time

import pytest
import redis

from director import log
from director.errors import NotFound
from director.models import time_ms
from director.web import inbox
from tests.processes import until
from tests.web_fixtures import SECRET, problem, serving, settings_for, signature

PUSH = {"ref": "refs/heads/main", "after": "a" * 40}
NEWS = {"x_github_event": "push"}


@pytest.fixture(scope="module", params=["tiny", "redis"])
def web(request, tmp_path_factory):
    url = request.getfixturevalue("redis_server") if request.param == "redis" else None
    home = tmp_path_factory.mktemp(request.param)
    with serving(settings_for(home, url, DIRECTOR_PREFIX=f"{home.name}:")) as running:
        yield running


def newest(web, answer):
    entry = web.inbox()[0]
    assert entry["status"] == answer.status_code
    return entry


def test_an_accepted_delivery(web):
    answer = web.hook(PUSH, x_github_delivery="in-1")
    entry = newest(web, answer)
    assert abs(time_ms(entry["at"]) - time.time() * 1000) < 5000
    assert {name: entry[name] for name in ("source", "event", "delivery", "verdict", "secret")} == {
        "source": "github",
        "event": "push",
        "delivery": "in-1",
        "verdict": "accepted",
        "secret": "GITHUB_WEBHOOK_SECRET",
    }
    assert entry["runs"] == [{"id": run["id"], "workflow": run["workflow"]} for run in answer.json()["runs"]]
    assert "body" not in entry
    for name in (entry["id"], "in-1"):
        shown = web.client.get(f"/deliveries/{name}").json()
        assert shown == {**entry, "body": '{"ref":"refs/heads/main","after":"%s"}' % ("a" * 40)}


def test_a_resend_has_an_entry_of_its_own(web):
    for _ in range(2):
        web.hook(PUSH, x_github_delivery="in-2")
    one, two = web.inbox()[:2]
    assert (one["verdict"], two["verdict"]) == ("duplicate", "accepted")
    assert one["runs"] == two["runs"]
    assert one["id"] > two["id"]


def test_the_secret_that_matched_is_named(web):
    raw, now = b'{"id": "evt_in", "type": "x"}', str(int(time.time()))
    mac = hmac.new(b"whsec_old", f"{now}.".encode() + raw, hashlib.sha256).hexdigest()
    answer = web.hook(raw, "billing", stripe_signature=f"t={now},v1={mac}")
    assert newest(web, answer)["secret"] == "STRIPE_SECRET_OLD"


@pytest.mark.parametrize(
    ("body", "event", "reason"),
    [
        ({"ref": "refs/heads/x"}, "star", 'pushed: trigger 1: the event "star" is not "push"'),
        ({"ref": "refs/heads/x"}, "push", "pushed: trigger 1: when `ref == 'refs/heads/main'` gave false"),
        ({}, "never", "off: the workflow is disabled"),
    ],
)
def test_what_a_filter_gave_is_said(web, body, event, reason):
    entry = newest(web, web.hook(body, x_github_event=event))
    assert entry["verdict"] in ("ignored", "accepted")
    assert reason in entry["reason"]


def test_a_workflow_that_is_out_of_service_is_named(web):
    """Given a deploy that broke it, then whoever looks why its hook did not fire finds it."""
    answer = web.hook({}, x_github_event="of-the-broken-one")
    assert (answer.status_code, answer.json()["runs"]) == (200, [])
    assert "broken: it has problems, so that its triggers are not known" in newest(web, answer)["reason"]


def test_the_reason_that_counts_is_kept_among_many(tmp_path):
    """Given more workflows of one source than the inbox has room for, then those that want another event go."""
    (tmp_path / "workflows").mkdir()
    lines = [f"w{n}: {{tasks: [ONE], triggers: [{{source: github, event: an-event-of-{n}}}]}}" for n in range(99)]
    lines += ["x: {tasks: [ONE], triggers: [{source: github, event: push, when: draft}]}"]
    lines += ["y: {tasks: [ONE], triggers: [{source: github, event: push, relaunch: latest}]}"]
    lines += ["sources: {github: {secret: $GITHUB_WEBHOOK_SECRET}}"]
    (tmp_path / "workflows" / "all.yml").write_text("\n".join(lines))
    with serving(settings_for(tmp_path)) as web:
        web.hook({"draft": False})
        assert web.inbox()[0]["reason"] == "y: No run of y has failed.; x: trigger 1: when `draft` gave false"
        answer = web.hook({}, x_github_event="other").json()
        reason = web.inbox()[0]["reason"]
        assert reason.startswith('w0: trigger 1: the event "other" is not "an-event-of-0"; w1: ')
        assert reason.endswith("…")
        assert answer["reason"] == reason


def test_a_schemas_refusal_is_said_and_the_body_kept(web):
    answer = web.hook({"id": "x"}, x_github_event="strict", x_github_delivery="in-3")
    entry = newest(web, answer)
    assert (entry["verdict"], entry["status"]) == ("refused", 422)
    assert "only.strict: The schema of only.strict refuses the payload: $.id" in entry["reason"]
    assert web.client.get("/deliveries/in-3").json()["body"] == '{"id":"x"}'


@pytest.mark.parametrize(
    ("source", "headers", "reason"),
    [
        ("github", {"x-hub-signature-256": "sha256=" + "0" * 64}, "bad_signature: the secret that is set does not make this signature (tried GITHUB_WEBHOOK_SECRET)"),
        ("github", {}, "missing_signature: there is no header X-Hub-Signature-256"),
        ("github", {"x-hub-signature-256": "sha1=" + "0" * 40}, 'malformed_signature: nothing that starts with "sha256=" is in X-Hub-Signature-256'),
        ("github", {"x-hub-signature-256": "sha256=zz"}, "malformed_signature: X-Hub-Signature-256 holds nothing in hex"),
        ("billing", {"stripe-signature": f"t={int(time.time()) - 4000},v1={'0' * 64}"}, "bad_signature: the secret that is set does not make this signature (tried STRIPE_SECRET_OLD)"),
        ("billing", {"stripe-signature": "v1=00"}, "malformed_timestamp: there are 0 timestamps in t"),
        ("closed", {"x-hub-signature-256": "sha256=" + "0" * 64}, "no_secret: no secret is set (set NOT_SET)"),
        ("gihub", {}, "no_source: no source has this name"),
    ],
)  # fmt: skip
def test_why_a_signature_is_refused(web, source, headers, reason):
    given = {"x-github-event": "push", "x-github-delivery": "claimed", **headers}
    answer = web.client.post(f"/hooks/{source}", content=b'{"word": "unsigned-body"}', headers=given)
    entry = newest(web, answer)
    assert (entry["verdict"], entry["reason"], entry["secret"], entry["source"]) == (
        "rejected",
        reason,
        None,
        source,
    )
    if source == "github":
        assert (entry["event"], entry["delivery"]) == ("push", "claimed"), "as its headers claim"
    assert web.client.get(f"/deliveries/{entry['id']}").json()["body"] is None


def test_a_clock_that_is_wrong_is_said(web):
    raw, at = b"{}", str(int(time.time()) - 412)
    mac = hmac.new(b"whsec_old", f"{at}.".encode() + raw, hashlib.sha256).hexdigest()
    entry = newest(web, web.hook(raw, "billing", stripe_signature=f"t={at},v1={mac}"))
    assert entry["reason"].startswith("stale: the timestamp is 41")
    assert entry["reason"].endswith("s older than this machine's clock; the tolerance is 300 s")


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"{", {}, 400, "The body is not valid JSON"),
        (b"\xff\xfe", {}, 400, "The body is not valid JSON"),
        (b"[" * 100_000, {}, 400, "The body is nested deeper than 128 levels."),
        (b"a=1", {}, 400, "The body is not valid JSON"),
        (b"{}", {"content_type": "application/x-www-form-urlencoded"}, 400, "looks like JSON"),
        (b"\x1f\x8b", {"content_encoding": "gzip"}, 415, "Send the body without Content-Encoding."),
    ],
)
def test_what_cannot_be_read_is_said(web, body, headers, status, words):
    answer = web.hook(body, **headers)
    problem(answer, status)
    entry = newest(web, answer)
    assert entry["verdict"] == "unreadable"
    assert words in entry["reason"]
    assert entry["secret"] == ("GITHUB_WEBHOOK_SECRET" if status == 400 else None)


def test_a_payload_that_is_no_object_is_no_match(web):
    (web.service.definitions.home / "workflows" / "odd.yml").write_text(
        "odd:\n  tasks: [ONE]\n  triggers: [{source: github, event: odd, payload: list}]\n"
    )
    web.service.definitions.refresh()
    answer = web.hook({"list": [1]}, x_github_event="odd")
    assert (answer.status_code, answer.json()["runs"]) == (200, [])
    assert "odd: trigger 1: payload `list` gave an array; expected an object" in newest(web, answer)["reason"]


def test_bodies_over_the_inboxs_limit_are_not_kept(web):
    answer = web.hook({**PUSH, "filler": "x" * inbox.MAX_BODY_BYTES}, x_github_delivery="in-large")
    assert answer.status_code == 202
    entry = newest(web, answer)
    assert entry["size"] > inbox.MAX_BODY_BYTES
    assert web.client.get("/deliveries/in-large").json()["body"] is None
    assert (
        "more than the inbox keeps"
        in problem(web.client.post("/deliveries/in-large/replay", json={}), 409)["detail"]
    )


def test_replay_starts_fresh_runs(web):
    first = web.hook(PUSH, x_github_delivery="in-4").json()["runs"]
    entry = web.inbox()[0]
    for name in ("in-4", entry["id"]):
        answer = web.client.post(f"/deliveries/{name}/replay", json={})
        assert answer.status_code == 202
        again = answer.json()["runs"]
        assert [run["workflow"] for run in again] == [run["workflow"] for run in first]
        assert not {run["id"] for run in again} & {run["id"] for run in first}
        run = web.run(again[0]["id"])
        assert run.comment == f"replay of delivery {entry['id']}"
        assert run.trigger == web.run(first[0]["id"]).trigger
        assert bytes(run.payload) == b'{"sha":"%s"}' % (b"a" * 40)


def test_a_form_is_replayed_as_one(web):
    body = b"payload=%7B%22ref%22%3A%20%22refs%2Fheads%2Fmain%22%7D"
    answer = web.hook(body, content_type="application/x-www-form-urlencoded; charset=utf-8")
    again = web.client.post(f"/deliveries/{answer.json()['delivery']}/replay", json={})
    assert len(again.json()["runs"]) == 2


def test_a_refused_delivery_is_never_replayed(web):
    web.hook(PUSH, x_hub_signature_256="sha256=" + "0" * 64, x_github_delivery="in-5")
    assert "nobody vouches for it" in problem(web.client.post("/deliveries/in-5/replay", json={}), 409)["detail"]
    problem(web.client.post("/deliveries/nothing/replay", json={}), 404)


def test_listings_are_filtered_and_paged(web):
    for n in range(5):
        web.hook(PUSH, x_github_delivery=f"page-{n}")
    page = web.client.get("/deliveries", params={"limit": 2, "source": "github"}).json()
    assert [entry["delivery"] for entry in page["deliveries"]] == ["page-4", "page-3"]
    page = web.client.get("/deliveries", params={"limit": 2, "cursor": page["next"]}).json()
    assert [entry["delivery"] for entry in page["deliveries"]] == ["page-2", "page-1"]
    assert {entry["verdict"] for entry in web.inbox(verdict="rejected")} <= {"rejected"}
    problem(web.client.get("/deliveries", params={"verdict": "fine"}), 400)
    problem(web.client.get("/deliveries/none"), 404)


def test_what_came_while_the_store_was_away_is_written_afterwards(web, monkeypatch):
    monkeypatch.setattr(inbox, "RETRY_S", 0.05)
    do, away = web.service.do, [True]

    async def moody(call):
        if away[0]:
            from director.errors import StoreUnavailable

            raise StoreUnavailable("away")
        return await do(call)

    monkeypatch.setattr(web.service, "do", moody)
    problem(web.hook(PUSH, x_github_delivery="in-away"), 503)
    away[0] = False
    entry = web.inbox()[0]
    assert (entry["delivery"], entry["verdict"], entry["reason"]) == ("in-away", "unavailable", "away")


def test_a_bug_does_not_end_the_writing(web, monkeypatch):
    monkeypatch.setattr(inbox, "RETRY_S", 0.05)
    do, left = web.service.do, [2]

    async def moody(call):
        if left[0]:
            left[0] -= 1
            raise KeyError("a bug")
        return await do(call)

    web.hook(PUSH)
    assert web.inbox()
    monkeypatch.setattr(web.service, "do", moody)
    assert web.hook({"zen": "…"}, x_github_event="ping", x_github_delivery="in-bug").status_code == 200
    until(lambda: not left[0], what="the tries that fail")
    until(lambda: written(web), what="the inbox")


def written(web):
    """Return whether the delivery is in the store: nothing that the process has gathered is looked at."""
    with contextlib.suppress(NotFound):
        return bool(web.store.do(web.store.delivery("in-bug")))


def test_what_is_gathered_is_written_when_the_service_stops(tmp_path):
    settings = settings_for(tmp_path)
    with serving(settings) as web:
        web.hook(PUSH, x_github_delivery="last")
    with serving(settings) as web:
        assert web.inbox()[0]["delivery"] == "last"


def test_a_damaged_inbox_is_written_once_it_is_moved_away(tmp_path, monkeypatch):
    monkeypatch.setattr(inbox, "RETRY_S", 0.05)
    file = tmp_path / ".director" / "deliveries.json"
    with serving(settings_for(tmp_path)) as web:
        file.write_text('{"deliveries": {"x": {}}}')
        assert web.hook(PUSH, x_github_delivery="in-damaged").status_code == 202
        assert "is not what this service wrote" in problem(web.client.get("/deliveries"), 503)["detail"]
        file.unlink()
        until(lambda: file.exists() and "in-damaged" in file.read_text(), what="the inbox")


@pytest.mark.parametrize("kind", ["tiny", "redis"])
def test_no_secret_and_no_right_signature_is_anywhere(tmp_path, request, kind, capfd):
    """Given a sender with a wrong secret, then neither log, answer nor store shows what would have been right."""
    url = request.getfixturevalue("redis_url") if kind == "redis" else None
    body = b'{"word": "body-of-a-stranger"}'
    right = signature(body, SECRET).removeprefix("sha256=")
    with serving(settings_for(tmp_path, url, DIRECTOR_WEBHOOK_SECRET="d2hhdCBubyBvbmUga25vd3M=")) as web:
        answers = [web.hook(body, x_hub_signature_256=signature(body, "misconfigured"), x_github_delivery="in-6")]
        answers += [web.hook(PUSH), web.client.post("/hooks/director", content=body)]
        paths = ("/deliveries", "/deliveries/in-6", "/sources", "/status", "/workflows", "/runs")
        answers += [web.client.get(path) for path in paths]
    log.flush()
    stored = (
        redis_contents(url) if url else [file.read_text() for file in (tmp_path / ".director").rglob("*.json")]
    )
    assert "bad_signature" in str(stored), "the reason is there"
    everything = {
        "answers": "\n".join(answer.text for answer in answers),
        "log": capfd.readouterr().err,
        "store": "\n".join(stored),
    }
    assert "bad_signature" in everything["log"]
    for secret in (
        SECRET,
        right,
        right.upper(),
        "body-of-a-stranger",
        "misconfigured",
        "d2hhdCBubyBvbmU",
        "whsec_old",
    ):
        assert [place for place, text in everything.items() if secret in text] == []


def redis_contents(url: str) -> list[str]:
    """Return every key and value of a server."""
    client = redis.Redis.from_url(url)
    readers = {
        b"hash": client.hgetall,
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
    }
    return [f"{key!r} {readers[client.type(key)](key)!r}" for key in client.keys("*")]
