"""POST /hooks/{source}: every answer that docs/webhooks.md promises, and what hostile senders try."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import socket
import time
from urllib.parse import urlencode

import httpx
import msgspec
import pytest

from director.store.shapes import Filter
from director.web import bodies
from tests.processes import until
from tests.web_fixtures import SECRET, problem, serving, settings_for, signature

PUSH = {"ref": "refs/heads/main", "after": "a" * 40}


@pytest.fixture(scope="module", params=["tiny", "redis"])
def web(request, tmp_path_factory):
    url = request.getfixturevalue("redis_server") if request.param == "redis" else None
    home = tmp_path_factory.mktemp(request.param)
    with serving(settings_for(home, url, DIRECTOR_PREFIX=f"{home.name}:")) as running:
        yield running


def runs_of(web, workflow):
    return web.store.do(web.store.list(Filter(workflow=workflow, limit=200)))[0]


# Accepted


def test_a_signed_delivery_starts_every_workflow_that_wants_it(web):
    answer = web.hook(PUSH, x_github_delivery="d-1")
    assert answer.status_code == 202
    body = answer.json()
    assert set(body) == {"delivery", "runs", "duplicate", "reason"}
    assert (body["delivery"], body["duplicate"], body["reason"]) == ("d-1", False, None)
    assert [run["workflow"] for run in body["runs"]] == ["pushed", "also.pushed"]
    assert body["runs"][0]["url"] == f"/runs/{body['runs'][0]['id']}"
    run = web.client.get(body["runs"][0]["url"]).json()
    assert run["payload"] == {"sha": "a" * 40}
    assert run["trigger"] == {"kind": "webhook", "source": "github", "event": "push", "delivery": "d-1"}


def test_a_repeat_gets_the_same_runs(web):
    first = web.hook(PUSH, x_github_delivery="d-2")
    again = web.hook(PUSH, x_github_delivery="d-2")
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == {**first.json(), "duplicate": True}


def test_a_delivery_without_an_id_is_never_a_repeat(web):
    one, two = web.hook(PUSH).json(), web.hook(PUSH).json()
    assert one["delivery"] != two["delivery"]
    assert one["runs"] != two["runs"]


def test_fifty_copies_at_once_are_one_run(web):
    before = len(runs_of(web, "also.pushed"))

    async def send():
        raw = msgspec.json.encode({**PUSH, "ref": "refs/heads/other"})
        headers = {
            "x-github-event": "push",
            "x-hub-signature-256": signature(raw),
            "x-github-delivery": "d-50",
            "content-type": "application/json",
        }
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{web.port}", timeout=20) as client:
            return await asyncio.gather(
                *(client.post("/hooks/github", content=raw, headers=headers) for _ in range(50))
            )

    answers = asyncio.run(send())
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [202]
    assert len({answer.json()["runs"][0]["id"] for answer in answers}) == 1
    assert len(runs_of(web, "also.pushed")) == before + 1


def test_a_refusing_schema_does_not_stop_the_others(web):
    answer = web.hook({"after": "x", "issue": {"id": "seven"}}, x_github_event="issues", x_github_delivery="d-3")
    assert answer.status_code == 202
    assert [run["workflow"] for run in answer.json()["runs"]] == ["also.pushed"]
    (refused,) = answer.json()["refused"]
    assert refused["workflow"] == "strict.ORDER"
    assert "$.id" in refused["reason"]


def test_when_every_schema_refuses_the_answer_names_the_paths(web):
    members = problem(web.hook({"id": "x"}, x_github_event="strict"), 422)
    assert members["refused"][0]["workflow"] == "only.strict"
    assert "$.id" in members["paths"][0]


def test_what_no_trigger_wants_is_answered_with_the_reason(web):
    answer = web.hook(PUSH, x_github_event="star", x_github_delivery="d-4")
    assert answer.status_code == 200
    assert answer.json()["runs"] == []
    assert 'the event "star" is not "push"' in answer.json()["reason"]


def test_a_schema_looks_at_a_large_body_beside_the_loop(web):
    filler = "x" * 20_000
    problem(web.hook({"id": "x", "filler": filler}, x_github_event="strict"), 422)
    answer = web.hook({"id": 1, "filler": filler}, x_github_event="strict")
    assert (answer.status_code, answer.json()["runs"][0]["workflow"]) == (202, "only.strict")


def test_a_ping_starts_nothing(web):
    answer = web.hook({"zen": "…"}, x_github_event="ping", x_github_delivery="d-5")
    assert (answer.status_code, answer.json()["runs"]) == (200, [])
    assert answer.json()["reason"]


@pytest.mark.parametrize("form", [{"payload": msgspec.json.encode(PUSH).decode()}, {**PUSH}])
def test_forms_with_json_or_plain_fields_are_read(web, form):
    answer = web.hook(urlencode(form).encode(), content_type="application/x-www-form-urlencoded")
    assert answer.status_code == 202
    run = web.client.get(answer.json()["runs"][0]["url"]).json()
    assert run["payload"] == {"sha": "a" * 40}


def test_an_old_secret_still_opens(web):
    raw, now = b'{"id": "evt_1", "type": "x"}', str(int(time.time()))
    mac = hmac.new(b"whsec_old", f"{now}.".encode() + raw, hashlib.sha256).hexdigest()
    answer = web.hook(raw, "billing", stripe_signature=f"t={now},v1={mac}")
    assert (answer.status_code, answer.json()["delivery"]) == (202, "evt_1")


# Refused


@pytest.mark.parametrize(
    "headers",
    [
        {"x_hub_signature_256": "sha256=" + "0" * 64},
        {"x_hub_signature_256": ""},
        {"x_hub_signature_256": "sha256=" + "é"},
        {"x_hub_signature_256": "sha1=" + "0" * 40},
        {"x_hub_signature_256": signature(b"{}", "")},
        {"x_hub_signature_256": "sha256=" * 5000},
    ],
)
def test_a_wrong_signature_is_refused_without_the_reason(web, headers):
    raw = {name.replace("_", "-"): value.encode("latin-1") for name, value in headers.items()}
    answer = web.client.post("/hooks/github", content=b"{}", headers={"x-github-event": "push", **raw})
    assert set(problem(answer, 401)) == {"type", "title", "status"}
    assert answer.headers["www-authenticate"]


def test_a_closed_source_and_a_missing_signature_look_like_a_wrong_one(web):
    wrong = web.hook(PUSH, x_hub_signature_256="sha256=" + "0" * 64)
    closed = web.hook(PUSH, "closed")
    missing = web.client.post("/hooks/github", content=b"{}")
    assert wrong.content == closed.content == missing.content


def test_stale_timestamps_are_refused(web):
    raw = b'{"id": "evt_2"}'
    for skew in (-400, 400):
        at = str(int(time.time()) + skew)
        mac = hmac.new(b"whsec_old", f"{at}.".encode() + raw, hashlib.sha256).hexdigest()
        problem(web.hook(raw, "billing", stripe_signature=f"t={at},v1={mac}"), 401)


def test_repeated_signature_headers_are_refused(web):
    right = signature(b"{}").encode()
    headers = [(b"x-hub-signature-256", right), (b"x-hub-signature-256", right), (b"x-github-event", b"push")]
    problem(web.client.post("/hooks/github", content=b"{}", headers=headers), 401)


@pytest.mark.parametrize(
    "path", ["/hooks/nobody", "/hooks/", "/hooks", "/hooks/github/x", "/hooks/%00", "/hooks/é"]
)
def test_unknown_sources(web, path):
    problem(web.client.post(path, content=b"{}"), 404)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "PATCH"])
def test_other_methods(web, method):
    answer = web.client.request(method, "/hooks/github")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nan", b"[1e999]", b'{"a": NaN}', b"\xff\xfe", b'"\\ud800"', b"{} {}", b"[" * 100_000]
)
def test_what_is_no_json(web, body):
    problem(web.hook(body), 400)


@pytest.mark.parametrize("deep", [b"[" * 129 + b"]" * 129, b'{"a":' * 500 + b"1" + b"}" * 500])
def test_nesting_is_bounded(web, deep):
    assert "nested" in problem(web.hook(deep), 400)["detail"]


def test_wide_is_not_deep(web):
    assert web.hook({**PUSH, "list": [{} for _ in range(5000)]}).status_code == 202


@pytest.mark.parametrize("form", [b"payload=%7B", b"payload=%ff", b"\xff=1", b"&".join([b"a=1"] * 1001)])
def test_what_is_no_form(web, form):
    problem(web.hook(form, content_type="application/x-www-form-urlencoded; charset=utf-8"), 400)


def test_json_sent_as_a_form_is_named(web):
    """Given curl -d without a Content-Type, which says form, then the answer says what to send."""
    answer = web.hook(PUSH, content_type="application/x-www-form-urlencoded")
    assert "Content-Type: application/json" in problem(answer, 400)["detail"]


def test_a_payload_that_is_no_json_is_refused(web):
    """Given a trigger whose expression makes what JSON has no word for, then that workflow is refused."""
    answer = web.hook({}, x_github_event="reference")
    assert "cannot be written as JSON" in problem(answer, 422)["refused"][0]["reason"]


def test_encoded_bodies_are_refused(web):
    problem(web.hook(b"\x1f\x8b", content_encoding="gzip"), 415)


def test_numbers_too_large_for_a_float_are_kept(web):
    answer = web.hook({**PUSH, "after": 10**40})
    run = web.client.get(answer.json()["runs"][0]["url"])
    assert str(10**40) in run.text


# Sizes and times


def test_a_large_body_is_refused_by_its_length(web):
    head = b"POST /hooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n"
    assert web.raw(head).startswith(b"HTTP/1.1 413")


def test_a_large_body_without_a_length_is_refused_once_it_is_too_large(web):
    def chunks():
        for _ in range(32):
            yield b"x" * 65536

    try:
        answer = web.client.post("/hooks/github", content=chunks())
    except httpx.TransportError:  # the answer came, and the connection was closed, before all was sent
        return
    assert problem(answer, 413)


def test_a_full_size_body_is_taken(web):
    body = msgspec.json.encode({**PUSH, "filler": ""})
    body = body.replace(b'"filler":""', b'"filler":"' + b"x" * ((1 << 20) - len(body)) + b'"')
    assert len(body) == 1 << 20
    assert web.hook(body).status_code == 202


def test_a_slow_body_is_given_up(web, monkeypatch):
    monkeypatch.setattr(bodies, "DEADLINE_S", 0.2)
    head = b"POST /hooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    answer = web.raw(head)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer.lower()


def test_slow_bodies_together_are_bounded(web, monkeypatch):
    """Given senders that hold back the end of large bodies, then one too many is told to come again."""
    monkeypatch.setattr(bodies, "MAX_HELD_BYTES", 1_500_000)
    head = b"POST /hooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 900_000
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as first:
        first.sendall(head)
        until(lambda: bodies._Held.size == 900_000)
        answer = web.raw(head)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in answer.lower()
        assert web.hook(PUSH).status_code == 202, "what arrives whole is taken"
    until(lambda: bodies._Held.size == 0)
    large = msgspec.json.encode({**PUSH, "filler": "x" * 900_000})
    assert web.hook(large).status_code == 202


def test_nothing_secret_is_logged(web, capfd):
    from director import log

    web.hook(PUSH, x_hub_signature_256="sha256=" + "ab" * 32)
    web.hook({**PUSH, "word": "hunter2"}, x_github_delivery="d-log")
    time.sleep(0.2)
    log.flush()
    lines = capfd.readouterr().err
    assert "webhook.rejected" in lines
    assert "webhook.accepted" in lines
    assert not re.search("hunter2|abababab|Secret to Everybody", lines)


def test_an_expression_that_fails_on_a_value_does_not_show_it(web, capfd):
    """JMESPath's own error quotes what it was given, here all of the body."""
    from director import log

    (web.service.definitions.home / "workflows" / "typed.yml").write_text(
        "typed: {tasks: [ONE], triggers: [{source: github, event: typed, when: 'sum(@) > `1`'}]}\n"
    )
    web.service.definitions.refresh()
    answer = web.hook({"word": "hunter2"}, x_github_event="typed")
    said = "typed: trigger 1: when `sum(@) > `1`` failed: sum() got object, expected array-number"
    assert said in answer.json()["reason"]
    time.sleep(0.2)
    log.flush()
    assert "hunter2" not in answer.text + capfd.readouterr().err


# The store


def test_a_store_that_is_away_is_503(tmp_path):
    settings = settings_for(tmp_path, "redis://127.0.0.1:1/0")
    with serving(settings) as web:
        answer = web.hook(PUSH)
        assert problem(answer, 503)["detail"] == "The store does not answer; send it again.", "not where it is"
        assert answer.headers["retry-after"] == "1"
        assert "127.0.0.1" not in problem(web.client.get("/health/ready"), 503)["detail"], "anybody may read it"
        assert web.client.get("/health/live").status_code == 200


def test_changed_definitions_are_picked_up(tmp_path):
    with serving(settings_for(tmp_path)) as web:
        assert web.hook({}, x_github_event="later").json()["runs"] == []
        (tmp_path / "workflows" / "more.yml").write_text(
            "later:\n  tasks: [ONE]\n  triggers: [{source: github, event: later}]\n"
        )
        deadline = time.monotonic() + 5
        while not web.hook({}, x_github_event="later").json()["runs"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_the_secret_is_what_the_tests_sign_with():
    assert signature(b"Hello, World!", SECRET) == (
        # docs.github.com, "Testing the webhook payload validation"
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    )
