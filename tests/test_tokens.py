"""Access tokens over real HTTP and both stores: every route with no, wrong, expired, narrow and right tokens."""

from __future__ import annotations

import secrets

import pytest
import redis

from director import access, log
from director.store.redis import RedisStore
from director.store.shapes import NewToken
from director.web.app import create_app
from tests.conftest import free_port
from tests.contract.test_inbox import entry
from tests.processes import start
from tests.web_fixtures import problem, serving, settings_for

WORKFLOWS = """
mine: {tasks: [ONE], periodic: {interval: 3600}}
theirs: {tasks: [ONE], periodic: {interval: 3600}}
sources:
  github: {secret: $GITHUB_WEBHOOK_SECRET}
"""
DELIVERY = entry(1, runs=())
OPEN = {("GET", "/health/live"), ("GET", "/health/ready")}
# What each caller sees of `theirs`, who may only see that; 403 where nothing is said here.
NARROWED = {
    "/workflows": lambda body: [workflow["name"] for workflow in body["workflows"]],
    "/status": lambda body: list(body["workflows"]),
    "/schedules": lambda body: [schedule["workflow"] for schedule in body["schedules"]],
    "/runs": lambda body: sorted({run["workflow"] for run in body["runs"]}),
    "/schema/openapi.json": lambda body: ["theirs"],
}


@pytest.fixture(params=["tiny", "redis"])
def settings(request, tmp_path):
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "all.yml").write_text(WORKFLOWS)
    return settings_for(tmp_path, url)


@pytest.fixture
def web(settings):
    with serving(settings) as running:
        yield running


def give(web, scope="admin", *workflows, **more):
    """Return the id of a new token, and the headers to send it with."""
    token, id_ = f"director_{secrets.token_urlsafe(32)}", secrets.token_hex(4)
    new = NewToken(id=id_, digest=access.digest(token), scope=scope, workflows=workflows, **more)
    web.store.do(web.store.add_token(new))
    return id_, bearer(token)


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def routes(web):
    """Return method, path and options of every route there is; Litestar's own OPTIONS says only what methods there are."""
    found = []
    for route in create_app(web.service.settings, worker=False, scheduler=False).routes:
        for method, (handler, _) in route.route_handler_map.items():
            if method != "OPTIONS" and route.path not in ("/schema", "/schema/{path:str}"):
                found.append((method, route.path, handler.opt))
    assert len(found) > 15
    return found


def runs(web):
    """Start a run of each workflow; return the id of that of `mine`."""
    ids = {name: start(web.store, web.service.definitions.workflow(name)) for name in ("mine", "theirs")}
    return ids["mine"]


def ask(web, method, path, run_id="x", headers=None):
    web.store.do(web.store.record([(DELIVERY, b"{}")]))
    spare, _ = give(web, "read") if method == "DELETE" else ("x", None)
    for name, value in (
        ("name", "mine"),
        ("workflow", "mine"),
        ("run_id", run_id),
        ("token_id", spare),
        ("delivery", DELIVERY.id),
    ):
        path = path.replace(f"{{{name}:str}}", value)
    body = {"json": {}} if method == "POST" else {}
    return web.client.request(method, path, headers=headers, **body)


def test_every_route_says_what_it_needs(web):
    for method, path, opt in routes(web):
        needs = opt.get("scope")
        if (method, path) in OPEN:
            assert opt == {"open": True}, path
        elif path.startswith("/tokens"):
            assert needs == "admin"
        else:
            assert needs == {"GET": "read", "POST": "run"}[method], path
            assert opt.get("bound", "") in ("path", "handler", ""), path


@pytest.mark.parametrize("case", ["none", "wrong", "empty", "expired", "revoked", "basic"])
def test_no_route_is_open_without_a_right_token(web, case):
    token, run_id = give(web)[1]["authorization"].removeprefix("Bearer "), runs(web)
    _, expired = give(web, expires_in_ms=0)
    gone, revoked = give(web)
    web.store.do(web.store.revoke(gone))
    headers = {
        "none": {},
        "wrong": bearer(token[:-1]),
        "empty": {"authorization": "Bearer"},
        "expired": expired,
        "revoked": revoked,
        "basic": {"authorization": f"Basic {token}"},
    }[case]
    for method, path, _ in routes(web):
        answer = ask(web, method, path, run_id, headers)
        if (method, path) in OPEN:
            assert answer.status_code == 200, path
            continue
        members = problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert ("expired" in members["detail"]) == (case == "expired")


def test_a_narrower_scope_is_refused(web):
    run_id = runs(web)
    for method, path, opt in routes(web):
        at = access.SCOPES.index(opt.get("scope", "read"))
        for scope in access.SCOPES[:at]:
            members = problem(ask(web, method, path, run_id, give(web, scope)[1]), 403)
            assert f'"{scope}"; this needs "{opt["scope"]}"' in members["detail"], path


def test_a_right_or_wider_scope_passes(web):
    run_id = runs(web)
    for method, path, opt in routes(web):
        at = access.SCOPES.index(opt.get("scope", "read"))
        for scope in access.SCOPES[at:]:
            answer = ask(web, method, path, run_id, give(web, scope)[1])
            assert answer.status_code in (200, 201, 202, 204, 409, 422), (path, answer.text)


def test_a_token_bound_to_another_workflow_sees_only_that(web):
    run_id = runs(web)
    _, headers = give(web, "admin", "theirs")
    before = web.store.do(web.store.get(run_id))
    for method, path, _ in routes(web):
        answer = ask(web, method, path, run_id, headers)
        if (method, path) in OPEN or path in NARROWED:
            assert answer.status_code == 200, path
            assert NARROWED.get(path, lambda _: ["theirs"])(answer.json()) == ["theirs"], path
            assert path == "/schema/openapi.json" or "mine" not in answer.text
        else:
            assert "bound to theirs" in problem(answer, 403)["detail"], path
    assert web.store.do(web.store.get(run_id)) == before


def test_a_bound_token_reaches_its_own_workflow(web):
    run_id = runs(web)
    _, headers = give(web, "admin", "theirs", "mine")
    for method, path, opt in routes(web):
        answer = ask(web, method, path, run_id, headers)
        if path == "/runs":
            assert "?workflow=" in problem(answer, 403)["detail"]
            answer = ask(web, method, "/runs?workflow=mine", headers=headers)
            problem(ask(web, method, "/runs?workflow=other", headers=headers), 403)
            problem(ask(web, method, "/runs?workflow=", headers=headers), 403)
        if opt.get("bound") or opt.get("open"):
            assert answer.status_code in (200, 202, 409), (path, answer.text)
        else:
            assert "concerns all workflows" in problem(answer, 403)["detail"]


def test_problems_name_any_workflow_so_a_bound_token_only_gets_their_number(web):
    (web.service.settings.home / "workflows" / "more.yml").write_text("secret: {tasks: []}")
    web.service.definitions.refresh()
    _, headers = give(web, "read", "theirs")
    for path in ("/workflows", "/status"):
        answer = web.client.get(path, headers=headers)
        assert len(answer.json()["problems"]) == 1
        assert "1 problem; a token for all workflows can see more" in answer.text
        assert "secret" not in answer.text
        assert "secret" in web.client.get(path, headers=give(web, "read")[1]).text


def test_a_token_is_created_listed_used_and_revoked(web):
    order = {"scope": "run", "workflows": ["mine", "mine"], "expires_in": "90d", "name": "CI"}
    made = web.client.post("/tokens", json=order)  # from this machine, while there is none
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    shown = made.json()
    headers = bearer(shown.pop("token"))
    assert (shown["scope"], shown["workflows"], shown["name"]) == ("run", ["mine"], "CI")
    problem(web.client.get("/tokens"), 401)
    _, admin = give(web)
    assert web.client.post("/workflows/mine/runs", json={}, headers=headers).status_code == 202
    listed = web.client.get("/tokens", headers=admin).json()["tokens"]
    assert listed[0] | {"last_used_at": None} == shown
    assert listed[0]["last_used_at"] >= listed[0]["created_at"]
    gone = web.client.delete(f"/tokens/{shown['id']}", headers=admin)
    assert (gone.status_code, gone.content) == (204, b"")
    problem(web.client.post("/workflows/mine/runs", json={}, headers=headers), 401)
    assert len(web.client.get("/tokens", headers=admin).json()["tokens"]) == 1
    assert "revoked already" in problem(web.client.delete(f"/tokens/{shown['id']}", headers=admin), 404)["detail"]


@pytest.mark.parametrize(
    ("order", "path"),
    [
        ({}, "$.scope: must be read, run or admin"),
        ({"scope": "write"}, "$.scope: must be read, run or admin"),
        ({"scope": ["read"]}, "$.scope: must be read, run or admin"),
        ({"scope": "read", "scopes": 1}, "$.scopes: unknown"),
        ({"scope": "read", "workflows": "mine"}, "$.workflows: must be a list of names"),
        ({"scope": "read", "workflows": []}, "$.workflows: must be a list of names; leave it out for all"),
        ({"scope": "read", "workflows": ["mine", 3]}, "$.workflows[1]: must be a name"),
        (
            {"scope": "read", "workflows": ["mien"]},
            '$.workflows[0]: no workflow is named "mien"; did you mean "mine"?',
        ),
        *(
            ({"scope": "read", "expires_in": wrong}, "$.expires_in: must be a time such as 90d")
            for wrong in ("soon", "0", "-1d", "36501d", "999999999d", "", 90, [])
        ),
        *(
            ({"scope": "read", "name": wrong}, "$.name: must be a text of at most 100")
            for wrong in ("x" * 101, "a\nb", "\x1b[2J", 3)
        ),
        ([], "$: is an array"),
    ],
)
def test_orders_that_make_no_sense(web, order, path):
    (said,) = problem(web.client.post("/tokens", json=order), 422)["paths"]
    assert said.startswith(path)
    assert web.client.get("/tokens").json() == {"tokens": []}


def test_nothing_but_the_first_answer_has_the_token(web, settings, capfd):
    """Given a token that was created, used and revoked, then neither a log nor an answer has it or its hash, nor
    has the store more than the hash."""
    made = web.client.post("/tokens", json={"scope": "run"})
    token, id_ = made.json()["token"], made.json()["id"]
    digest, (_, admin) = access.digest(token), give(web)
    answers = [
        made.text.replace(token, ""),
        *(web.client.get(path, headers=admin).text for path in ("/tokens", "/status", "/schema/openapi.json")),
        web.client.get("/tokens", headers=bearer(token)).text,
        web.client.get("/runs", headers=bearer(token + "x")).text,
        web.client.get("/runs", headers={"authorization": f"Bearer {token}ÿ".encode("latin-1")}).text,
    ]
    stored = everything(web.store, settings)
    assert digest in stored
    assert token not in stored
    answers += [web.client.delete(f"/tokens/{id_}", headers=admin).text]
    answers += [web.client.get("/runs", headers=bearer(token)).text]
    assert digest not in everything(web.store, settings)
    log.flush()
    told = "\n".join([*answers, *capfd.readouterr()])
    assert "token.created" in told
    assert "token.revoked" in told
    for secret in (token, token.removeprefix("director_"), digest, digest[:16]):
        assert secret not in told


def everything(store, settings):
    """Return all that a store holds as one text."""
    if not isinstance(store, RedisStore):
        files = [file for file in settings.data_dir.rglob("*") if file.is_file()]
        return "\n".join(file.read_text() for file in files)
    with redis.Redis.from_url(store.url, decode_responses=True) as client:
        read = {
            "string": client.get,
            "hash": client.hgetall,
            "set": client.smembers,
            "zset": lambda key: client.zrange(key, 0, -1),
            "list": lambda key: client.lrange(key, 0, -1),
        }
        return "\n".join(f"{key} {read[client.type(key)](key)}" for key in client.scan_iter())


def test_a_second_process_refuses_a_revoked_token_at_once(web, settings):
    with serving(settings) as other:
        _, admin = give(web)
        id_, headers = give(web, "read")
        assert other.client.get("/runs", headers=headers).status_code == 200
        assert web.client.delete(f"/tokens/{id_}", headers=admin).status_code == 204
        problem(other.client.get("/runs", headers=headers), 401)


def test_while_there_is_no_token_only_this_machine_may_call(web):
    assert web.client.get("/runs").status_code == 200
    problem(web.client.get("/runs", headers={"host": "example.com"}), 401)
    problem(web.client.get("/runs", headers=bearer("director_unknown")), 401)
    id_, headers = give(web, "read")
    problem(web.client.get("/runs"), 401)
    assert web.client.get("/runs", headers={**headers, "host": "example.com", "via": "x"}).status_code == 200
    web.store.do(web.store.revoke(id_))
    assert web.client.get("/runs").status_code == 200
    problem(web.client.get("/runs", headers=headers), 401)


def test_the_last_token_that_expires_opens_nothing(web):
    """Nobody does anything when a token expires, so nobody would notice that the service is open again."""
    id_, headers = give(web, expires_in_ms=0)
    assert "expired" in problem(web.client.get("/runs", headers=headers), 401)["detail"]
    problem(web.client.get("/runs"), 401)
    web.store.do(web.store.revoke(id_))
    assert web.client.get("/runs").status_code == 200


def test_a_public_status_is_all_to_nobody_and_narrow_to_a_bound_token(settings):
    home, url = settings.home, settings.redis_url
    with serving(settings_for(home, url, DIRECTOR_PUBLIC_STATUS="1")) as web:
        _, headers = give(web, "read", "theirs")
        for given in ({}, bearer("wrong")):
            assert list(web.client.get("/status", headers=given).json()["workflows"]) == ["mine", "theirs"]
            assert web.client.get("/status/mine", headers=given).status_code == 200
        assert list(web.client.get("/status", headers=headers).json()["workflows"]) == ["theirs"]


def test_the_configured_token_needs_no_store(tmp_path):
    away = f"redis://127.0.0.1:{free_port()}/0"
    with serving(settings_for(tmp_path, away, DIRECTOR_TOKEN="right")) as web:
        document = "/schema/openapi.json"
        assert web.client.get(document, headers=bearer("right")).status_code == 200
        problem(web.client.get(document), 401)
        answer = web.client.get(document, headers=bearer("other"))
        assert away.removesuffix("/0") not in str(problem(answer, 503))  # nobody known asks
        assert answer.headers["retry-after"] == "1"


def test_beside_the_configured_token_others_count(settings):
    with serving(settings_for(settings.home, settings.redis_url, DIRECTOR_TOKEN="right")) as web:
        _, headers = give(web, "read")
        assert web.client.get("/tokens", headers=bearer("right")).status_code == 200
        assert web.client.get("/runs", headers=headers).status_code == 200
        problem(web.client.get("/tokens", headers=headers), 403)
        problem(web.client.get("/runs", headers=[("authorization", headers["authorization"])] * 2), 401)


def test_a_full_store_still_knows_its_tokens(tmp_path, redis_url):
    """Given a Redis that has no room, then a use goes unnoted, and whoever has to look may look."""
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "all.yml").write_text(WORKFLOWS)
    with serving(settings_for(tmp_path, redis_url)) as web, redis.Redis.from_url(redis_url) as client:
        id_, headers = give(web, "read")
        client.config_set("maxmemory", 1)
        try:
            assert web.client.get("/runs", headers=headers).status_code == 200
        finally:
            client.config_set("maxmemory", 0)
        assert web.store.do(web.store.tokens())[0].last_used_at is None
        assert web.client.get("/runs", headers=headers).status_code == 200
        assert web.store.do(web.store.tokens())[0].id == id_
