"""Runs, status, access and the OpenAPI document, over real HTTP and both stores."""

from __future__ import annotations

import hashlib
import re
import threading
import time
import uuid
from urllib.parse import quote

import httpx
import msgspec
import pytest
import redis
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from director.definitions import load
from director.store.redis import RedisStore
from director.store.shapes import Dedupe
from director.store.tables import TinyCall
from tests.web_fixtures import WORKFLOWS, problem, serving, settings_for, signature

RUN = {
    *("id", "workflow", "status", "launch", "trigger", "comment", "relaunch_of", "created_at", "started_at"),
    *("ended_at", "duration_s", "progress", "error", "url"),
}
TASK_RUN = {
    *("number", "key", "task", "status", "attempts", "parents", "queue", "hook", "queued_at", "started_at"),
    *("ended_at", "next_at", "worker", "result", "error"),
}
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(scope="module", params=["tiny", "redis"])
def web(request, tmp_path_factory):
    url = request.getfixturevalue("redis_server") if request.param == "redis" else None
    home = tmp_path_factory.mktemp(f"api-{request.param}")
    with serving(settings_for(home, url, DIRECTOR_PREFIX=f"{home.name}:")) as running:
        yield running


def start(web, name="plain", payload=None, **options):
    answer = web.client.post(f"/workflows/{name}/runs", json=payload or {}, **options)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


# Starting


def test_a_start_answers_where_the_run_is(web):
    answer = web.client.post("/workflows/plain/runs?comment=by%20hand", json={"a": 1})
    assert answer.status_code == 202
    body = answer.json()
    assert body == {
        "id": body["id"],
        "workflow": "plain",
        "status": "queued",
        "url": f"/runs/{body['id']}",
    }
    assert answer.headers["location"] == body["url"]
    run = web.client.get(body["url"]).json()
    assert set(run) == RUN | {"payload", "tasks"}
    assert (run["payload"], run["comment"], run["trigger"]) == ({"a": 1}, "by hand", {"kind": "api"})
    assert run["progress"] == {"total": 2, "succeeded": 0, "failed": 0}
    assert all(run[key] is None for key in ("relaunch_of", "started_at", "ended_at", "duration_s", "error"))
    assert [set(task) for task in run["tasks"]] == [TASK_RUN, TASK_RUN]
    assert run["tasks"][1]["parents"] == ["ONE"]


def test_times_are_utc_with_milliseconds(web):
    run_id = start(web)
    web.finish(run_id)
    run = web.client.get(f"/runs/{run_id}").json()
    for text in (run["created_at"], run["ended_at"], run["tasks"][0]["started_at"]):
        assert re.fullmatch(TIME, text)
    assert run["duration_s"] >= 0


def test_an_empty_body_is_an_empty_payload(web):
    answer = web.client.post("/workflows/plain/runs")
    assert answer.status_code == 202
    assert web.client.get(answer.json()["url"]).json()["payload"] == {}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[1]", 422),
        (b"null", 422),
        (b'"text"', 422),
        (b"{", 400),
        (b"\xff", 400),
        (b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", 400),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', 413),
    ],
)
def test_bodies_that_are_no_payload(web, body, status):
    headers = {"content-type": "application/json"}
    problem(web.client.post("/workflows/plain/runs", content=body, headers=headers), status)


def test_refused_starts_say_why(web):
    members = problem(web.client.post("/workflows/strict.ORDER/runs", json={"id": "x"}), 422)
    assert "$.id" in members["paths"][0]
    members = problem(web.client.post("/workflows/broken/runs", json={}), 409)
    assert members["problems"][0].startswith("workflows/all.yml:")
    problem(web.client.post("/workflows/off/runs", json={}), 409)
    assert "plain" in problem(web.client.post("/workflows/plian/runs", json={}), 404)["detail"]


def test_an_idempotency_key_starts_once(web):
    headers = {"idempotency-key": str(uuid.uuid4())}
    first = web.client.post("/workflows/plain/runs", json={"a": 1, "b": 2}, headers=headers)
    again = web.client.post("/workflows/plain/runs", content=b'{"b": 2, "a": 1}', headers=_json(headers))
    other = web.client.post("/workflows/plain/runs", json={"a": 2}, headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == first.json()
    assert first.json()["id"] in problem(other, 422)["detail"]


def test_a_key_outlives_its_run(web):
    """Given a key whose run is not kept any more, then its id is still the answer, and nothing starts."""
    headers = {"idempotency-key": str(uuid.uuid4())}
    run_id = start(web, headers=headers)
    web.finish(run_id)
    forget(web.store, run_id)
    for query in ("", "?wait=5"):
        again = web.client.post(f"/workflows/plain/runs{query}", json={}, headers=headers)
        assert again.status_code == 200
        assert (again.json()["id"], again.json()["status"]) == (run_id, None)


def forget(store, run_id):
    """Remove a run as retention does."""
    if isinstance(store, RedisStore):
        with redis.Redis.from_url(store.url) as client:
            assert client.delete(store._key("run:", run_id), store._key("data:", run_id))
    else:
        store.do(TinyCall(lambda: store._remove("runs", [run_id])))


def test_a_key_cannot_be_a_delivery(web):
    """Given a source named api, then its deliveries and the callers' keys are apart."""
    key = "d-1"
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    dedupe = Dedupe(key=f"api:{name}", ttl_s=60)
    workflow = web.service.definitions.workflow("plain")
    new = web.service.engine.start(workflow, {}, trigger={"kind": "webhook"}, dedupe=dedupe)
    other = web.store.do(web.store.start(new)).run_id
    assert start(web, headers={"idempotency-key": key}) != other


def _json(headers):
    return {**headers, "content-type": "application/json"}


def test_wait_answers_with_the_finished_run(web):
    headers = {"idempotency-key": str(uuid.uuid4())}
    run_id = start(web, headers=headers)
    timer = threading.Timer(0.2, web.finish, [run_id])
    timer.start()
    answer = web.client.post("/workflows/plain/runs?wait=10", json={}, headers=headers)
    timer.join()
    assert answer.status_code == 200
    assert (answer.json()["id"], answer.json()["status"]) == (run_id, "succeeded")
    assert [task["result"] for task in answer.json()["tasks"]] == [1, 1]


def test_wait_gives_up_in_time(web):
    began = time.monotonic()
    answer = web.client.post("/workflows/plain/runs?wait=0.3", json={})
    assert answer.status_code == 202
    assert 0.3 <= time.monotonic() - began < 15


@pytest.mark.parametrize("wait", ["61", "-1", "nan", "inf", "soon", ""])
def test_bad_waits(web, wait):
    assert "wait" in problem(web.client.post(f"/workflows/plain/runs?wait={wait}", json={}), 400)["detail"]


# Reading


def test_listings_filter_and_page(web):
    ids = [start(web, "pushed", {"n": n}) for n in range(5)]
    web.finish(ids[0])
    page = web.client.get("/workflows/pushed/runs?limit=2").json()
    seen = [run["id"] for run in page["runs"]]
    assert set(page["runs"][0]) == RUN
    while page["next"]:
        page = web.client.get("/workflows/pushed/runs", params={"limit": 2, "cursor": page["next"]}).json()
        seen += [run["id"] for run in page["runs"]]
    assert sorted(seen) == sorted(ids)
    done = web.client.get("/runs?workflow=pushed&status=succeeded").json()["runs"]
    assert [run["id"] for run in done] == [ids[0]]
    first = web.client.get(f"/runs/{ids[0]}").json()["created_at"]
    assert len(web.client.get("/runs", params={"workflow": "pushed", "since": first}).json()["runs"]) == 5
    assert web.client.get("/runs", params={"workflow": "pushed", "until": first}).json()["runs"] == []
    assert web.client.get("/runs?since=2999-01-01T00:00:00%2B02:00").json() == {"runs": [], "next": None}


@pytest.mark.parametrize(
    "query",
    [
        "status=done",
        "limit=0",
        "limit=201",
        "limit=x",
        "since=yesterday",
        "since=2030-01-01",
        "until=2030-01-01T00:00:00",
        "cursor=abc",
        "since=-9999999-01-01T00:00:00Z",
    ],
)
def test_bad_filters_are_named(web, query):
    assert query.partition("=")[0] in problem(web.client.get(f"/runs?{query}"), 400)["detail"]


@pytest.mark.parametrize(
    "path",
    ["/runs/x", "/runs/7afca6dc-0bff-4daf-a6c8-8cb3aa2a4a03", "/runs/%00", "/workflows/x", "/nowhere", "/x/y"],
)
def test_what_is_not_there(web, path):
    problem(web.client.get(path), 404)


def test_wrong_methods_say_which_are_right(web):
    answer = web.client.delete("/runs")
    problem(answer, 405)
    assert "GET" in answer.headers["allow"]


def test_workflows_show_definition_and_newest_run(web):
    run_id = start(web)
    found = web.client.get("/workflows/plain").json()
    assert (found["name"], found["last_run"], found["status"]) == ("plain", run_id, "queued")
    assert found["tasks"] == [{"task": "ONE"}, {"task": "TWO"}]
    listed = web.client.get("/workflows").json()
    assert {workflow["name"] for workflow in listed["workflows"]} >= {"plain", "off", "strict.ORDER"}
    assert any("broken" in text for text in listed["problems"])
    problem(web.client.get("/workflows/broken"), 409)


# Canceling and relaunching


def test_cancel_ends_a_run_once(web):
    run_id = start(web)
    answer = web.client.post(f"/runs/{run_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "canceled")
    assert "canceled" in problem(web.client.post(f"/runs/{run_id}/cancel"), 409)["detail"]
    problem(web.client.post("/runs/x/cancel"), 404)


def test_relaunch_plans_and_runs(web):
    run_id = start(web)
    problem(web.client.post(f"/runs/{run_id}/relaunch"), 409)
    web.client.post(f"/runs/{run_id}/cancel")
    planned = web.client.post(f"/runs/{run_id}/relaunch?plan=1", json={"from": "failed"})
    expected = {"id": run_id, "url": f"/runs/{run_id}", "rerun": ["ONE", "TWO"], "keep": []}
    assert (planned.status_code, planned.json()) == (200, expected)
    assert web.client.get(f"/runs/{run_id}").json()["status"] == "canceled"
    done = web.client.post(f"/runs/{run_id}/relaunch")
    assert (done.status_code, done.json()) == (202, expected)
    assert web.client.get(f"/runs/{run_id}").json()["launch"] == 2


def test_relaunch_with_a_payload_is_a_new_run(web):
    run_id = start(web)
    web.finish(run_id)
    answer = web.client.post(f"/runs/{run_id}/relaunch", json={"from": "start", "payload": {"b": 2}})
    assert answer.status_code == 202
    new = web.client.get(answer.headers["location"]).json()
    assert (new["relaunch_of"], new["payload"]) == (run_id, {"b": 2})


@pytest.mark.parametrize(
    ("order", "path"),
    [({"form": "start"}, "$.form"), ({"from": 3}, "$.from"), ({"payload": []}, "$.payload"), ([], "$")],
)
def test_relaunch_orders_that_make_no_sense(web, order, path):
    refused = problem(web.client.post(f"/runs/{start(web)}/relaunch", json=order), 422)
    assert [entry.partition(":")[0] for entry in refused["paths"]] == [path]


# At a glance


def test_status_has_its_shape_and_an_etag(web):
    answer = web.client.get("/status")
    body = answer.json()
    assert set(body) == {"at", "mode", "workers", "queued", "oldest_queued_s", "problems", "workflows"}
    assert set(body["workflows"]["plain"]) == {"status", "last_run", "last_success_at", "active", "next_due"}
    text = "\n".join(body["problems"])
    assert "broken" in text
    assert "closed: set NOT_SET" in text
    assert "no worker" in text
    assert "workflows/all.yml" in text
    again = web.client.get("/status", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    start(web)
    changed = web.client.get("/status", headers={"if-none-match": answer.headers["etag"]})
    assert changed.status_code == 200


def test_strict_status_fails_where_a_monitor_should_look(web):
    problem(web.client.get("/status/also.pushed?strict=1&max_age=26h"), 503)
    run_id = start(web, "also.pushed")
    web.finish(run_id)
    good = web.client.get("/status/also.pushed?strict=1&max_age=26h")
    assert (good.status_code, good.json()["status"]) == (200, "succeeded")
    time.sleep(0.01)
    problem(web.client.get("/status/also.pushed?strict=1&max_age=0"), 503)
    problem(web.client.get("/status/also.pushed?max_age=old"), 400)
    problem(web.client.get("/status/nothing"), 404)


def test_sources_show_what_is_set_and_no_secret(web):
    answer = web.client.get("/sources")
    found = {source["name"]: source for source in answer.json()["sources"]}
    assert found["github"] == {
        "name": "github",
        "scheme": "github",
        "url": "/hooks/github",
        "open": True,
        "secrets": [{"name": "GITHUB_WEBHOOK_SECRET", "set": True}],
    }
    assert [secret["set"] for secret in found["billing"]["secrets"]] == [False, True]
    assert found["closed"]["open"] is False
    assert "Secret to" not in answer.text
    assert "whsec" not in answer.text


def test_health(web):
    assert web.client.get("/health/live").json() == {"status": "live"}
    assert web.client.get("/health/ready").json() == {"status": "ready"}


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/status", "/status/plain"])
def test_monitors_may_ask_with_head(web, path):
    answer = web.client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


# Access


def test_a_token_guards_all_but_hooks_and_health(tmp_path):
    with serving(settings_for(tmp_path, DIRECTOR_TOKEN="right")) as web:
        for path in ("/runs", "/workflows", "/status", "/status/plain", "/sources", "/schema/openapi.json"):
            answer = web.client.get(path)
            problem(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert web.client.get(path, headers={"authorization": "Bearer right"}).status_code == 200
            problem(web.client.get(path, headers={"authorization": "Bearer wrong"}), 401)
            problem(web.client.get(path, headers={"authorization": "Bearer é".encode("latin-1")}), 401)
            problem(web.client.get(path, headers={"authorization": "Basic right"}), 401)
        assert web.client.get("/health/ready").status_code == 200
        assert web.hook({}).status_code == 202


def test_public_status_needs_no_token(tmp_path):
    with serving(settings_for(tmp_path, DIRECTOR_TOKEN="right", DIRECTOR_PUBLIC_STATUS="1")) as web:
        public = web.client.get("/status").json()["problems"]
        known = web.client.get("/status", headers={"authorization": "Bearer right"}).json()["problems"]
        assert len(known) > 1
        assert public == [f"{len(known)} problems; a token for all workflows can see more."]
        assert web.client.get("/status/plain").status_code == 200
        problem(web.client.get("/runs"), 401)


def test_a_token_is_compared_byte_by_byte(tmp_path):
    with serving(settings_for(tmp_path, DIRECTOR_TOKEN="clé")) as web:
        for given, status in (("clé".encode(), 200), ("clé".encode("latin-1"), 401), (b"cl", 401), (b"x", 401)):
            answer = web.client.get("/runs", headers={"authorization": b"bearer " + given})
            assert answer.status_code == status


def test_without_a_token_only_this_machine_may_call(web):
    proxies = ("x-forwarded-for", "x-forwarded", "forwarded", "x-client-ip", "via", "x-real-ip")
    for headers in ({"host": "example.com"}, *({name: "1.2.3.4"} for name in proxies)):
        problem(web.client.get("/runs", headers=headers), 401)
    # nginx as it comes speaks HTTP/1.0 and says nothing of itself.
    assert web.raw(b"GET /runs HTTP/1.0\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 401")
    assert web.raw(b"GET /runs HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200")
    problem(web.client.get("/runs", headers={"origin": "https://evil.example"}), 403)
    problem(web.client.post("/workflows/plain/runs", content=b"a=1"), 415)


# The document


def test_every_documented_route_answers_and_none_is_missing(web):
    answer = web.client.get("/schema/openapi.json")
    document = answer.json()
    assert document["openapi"].startswith("3.")
    expected = {
        *("/hooks/{source}", "/workflows", "/workflows/{name}", "/workflows/{name}/runs", "/runs"),
        *("/runs/{run_id}", "/runs/{run_id}/relaunch", "/runs/{run_id}/cancel", "/status"),
        *("/status/{workflow}", "/sources", "/health/live", "/health/ready", "/tokens", "/tokens/{token_id}"),
        *("/deliveries", "/deliveries/{delivery}", "/deliveries/{delivery}/replay"),
    }
    assert set(document["paths"]) >= expected
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["summary"]
            address = path.format(
                source="nobody", name="plain", run_id="x", workflow="plain", delivery="x", token_id="x"
            )
            given = web.client.request(method, address, headers={"content-type": "application/json"})
            assert given.status_code != 405
            assert given.status_code < 500
            known = operation["responses"]
            assert str(given.status_code) in known or "default" in known


def test_the_document_is_valid(web):
    schema = schemathesis.openapi.from_dict(web.client.get("/schema/openapi.json").json())
    schema.validate()
    assert len(list(schema.get_all_operations())) == 22


def test_nothing_else_is_below_schema(web):
    for path in ("/schema", "/schema/swagger", "/schema/openapi.yaml"):
        problem(web.client.get(path), 404)


# Anything at all

_NAMES = st.sampled_from(["plain", "strict.ORDER", "broken", "off", "github", "billing", "partner", "x"])
_PATHS = st.sampled_from(
    [
        *("/hooks/{}", "/workflows/{}/runs", "/workflows/{}", "/runs/{}", "/runs/{}/relaunch", "/runs/{}/cancel"),
        *(
            "/status/{}",
            "/runs",
            "/status",
            "/workflows",
            "/sources",
            "/deliveries",
            "/deliveries/{}/replay",
            "/schema/openapi.json",
            "/{}",
            "/schema/{}",
        ),
    ]
)
_VALUES = st.text(max_size=20) | st.sampled_from(["1", "0", "true", "60", "2030-01-01T00:00:00Z", "nan"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_BODIES = st.binary(max_size=200) | _JSON.map(msgspec.json.encode)
_HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("content-type", "x-hub-signature-256", "x-github-event", "x-github-delivery", "idempotency-key"),
            *("stripe-signature", "x-signature", "if-none-match", "origin", "content-encoding", "accept"),
        ]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40).map(
        lambda text: text.strip().encode("latin-1")  # the client sends no header with spaces around it
    ),
    max_size=4,
)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "OPTIONS"]),
    path=_PATHS,
    name=_NAMES | st.text(min_size=1, max_size=12),
    query=st.dictionaries(
        st.sampled_from(["wait", "limit", "cursor", "since", "status", "strict", "max_age", "plan", "comment"]),
        _VALUES,
        max_size=3,
    ),
    headers=_HEADERS,
    body=_BODIES,
    signed=st.booleans(),
)
def test_nothing_is_ever_a_500(web, method, path, name, query, headers, body, signed):
    """Given any request, then the answer is no 500, and every error is a problem."""
    if signed:
        headers = {"content-type": b"application/json", **headers, "x-hub-signature-256": signature(body).encode()}
    query = {key: "0" if key == "wait" and value == "60" else value for key, value in query.items()}
    url = httpx.URL(f"http://127.0.0.1:{web.port}{path.format(quote(name, safe=''))}", params=query)
    answer = web.client.request(method, url, headers=headers, content=body)
    assert answer.status_code < 500 or (answer.status_code == 503 and "/status/" in path), answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"


def test_the_project_of_these_tests_reads_as_meant(tmp_path):
    settings_for(tmp_path)
    assert set(load(tmp_path).broken) == {"broken"}
    assert "broken:" in WORKFLOWS
