"""Runs relaunched by webhook: by a trigger, by a delivery that comes again, by the built-in source."""

from __future__ import annotations

import asyncio
import base64
from urllib.parse import urlencode

import httpx
import msgspec
import pytest
from slack_sdk.signature import SignatureVerifier

from director.store.redis import RedisStore
from tests.processes import start as workflow_start
from tests.web_fixtures import problem, serving, settings_for, signature

WHSEC = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
HOOKS = """
deploy:
  tasks: [BUILD, SHIP, TELL]
  triggers:
    - {source: github, event: deploy}
    - {source: slack, event: /relaunch, relaunch: text}
    - {source: slack, event: /again, relaunch: latest}
    - {source: slack, event: /odd, relaunch: "length(text)"}
other:
  tasks: [ONE]
  triggers:
    - {source: github, event: deploy}
    - {source: slack, event: /relaunch, relaunch: text}
careful:
  tasks: [BUILD, SHIP]
  triggers: [{source: again}]
off.now:
  tasks: [ONE]
  enabled: false
sources:
  slack: {secret: $SLACK_SECRET}
  again: {scheme: github, secret: $GITHUB_WEBHOOK_SECRET, redelivery: relaunch}
"""


@pytest.fixture(scope="module", params=["tiny", "redis"])
def web(request, tmp_path_factory):
    url = request.getfixturevalue("redis_server") if request.param == "redis" else None
    home = tmp_path_factory.mktemp(request.param)
    (home / "workflows").mkdir()
    (home / "workflows" / "hooks.yml").write_text(HOOKS.partition("sources:")[0])
    secrets = {"SLACK_SECRET": "slack-secret", "DIRECTOR_WEBHOOK_SECRET": WHSEC}
    settings = settings_for(home, url, DIRECTOR_PREFIX=f"{home.name}:", **secrets)
    file = home / "workflows" / "all.yml"
    file.write_text(file.read_text() + HOOKS.partition("sources:\n")[2])
    with serving(settings) as running:
        yield running


def started(web, event="deploy", delivery=""):
    answer = web.hook({}, x_github_event=event, **({"x_github_delivery": delivery} if delivery else {}))
    assert answer.status_code == 202, answer.text
    return {run["workflow"]: run["id"] for run in answer.json()["runs"]}


def signed(name, text, trigger):
    """Return a Slack command's body and headers, signed by Slack's own SDK; its fields are those of docs.slack.dev."""
    body = urlencode({"command": name, "text": text, "user_name": "ann", "trigger_id": trigger})
    made = SignatureVerifier("slack-secret")
    at = str(int(made.clock.now()))
    headers = {
        "content-type": "application/x-www-form-urlencoded",
        "x-slack-request-timestamp": at,
        "x-slack-signature": made.generate_signature(timestamp=at, body=body),
    }
    return body, headers


def command(web, name, text, trigger="t-1"):
    body, headers = signed(name, text, trigger)
    return web.client.post("/hooks/slack", content=body, headers=headers)


def statuses(web, run_id):
    run = web.run(run_id)
    return run.status, run.launch, {task.key: task.status for task in run.tasks}


def test_a_slack_command_relaunches_only_what_failed(web):
    run_id = started(web)["deploy"]
    web.fail(run_id, "SHIP")
    answer = command(web, "/relaunch", run_id)
    assert answer.status_code == 202
    assert [(run["id"], run["workflow"]) for run in answer.json()["runs"]] == [(run_id, "deploy")]
    assert (answer.json()["response_type"], answer.json()["text"]) == ("ephemeral", f"deploy: /runs/{run_id}")
    expected = {"BUILD": "succeeded", "SHIP": "queued", "TELL": "pending"}
    assert statuses(web, run_id) == ("queued", 2, expected)
    web.finish(run_id)
    assert [task.attempts for task in web.run(run_id).tasks] == [1, 2, 1]


def test_latest_is_the_newest_failed_run_of_the_workflow(web):
    first, second, third = (started(web)["deploy"] for _ in range(3))
    web.fail(first, "BUILD")
    web.fail(second, "SHIP")
    web.finish(third)
    assert [run["id"] for run in command(web, "/again", "", "t-2").json()["runs"]] == [second]
    assert statuses(web, second)[:2] == ("queued", 2)
    assert [run["id"] for run in command(web, "/again", "", "t-3").json()["runs"]] == [first]
    answer = command(web, "/again", "", "t-4")
    assert (answer.status_code, answer.json()["runs"]) == (200, [])
    assert "No run of deploy has failed" in answer.json()["reason"]
    assert answer.json()["text"] == answer.json()["reason"], "Slack shows it to who gave the command"
    web.finish(first)
    web.finish(second)


def test_latest_is_found_behind_many_that_did_not_fail(web):
    """Given more runs since than one look at the store reads, 2,000."""
    run_id = started(web)["deploy"]
    web.fail(run_id, "BUILD")
    deploy = web.service.definitions.workflow("deploy")
    for _ in range(2001 if isinstance(web.store, RedisStore) else 20):
        workflow_start(web.store, deploy)
    assert [run["id"] for run in command(web, "/again", "", "t-behind").json()["runs"]] == [run_id]
    web.finish(run_id)


def test_a_copy_of_the_command_relaunches_nothing_more(web):
    """Given the same signed bytes again, while the run goes on and after it has failed anew."""
    run_id = started(web)["deploy"]
    web.fail(run_id, "SHIP")
    body, headers = signed("/relaunch", run_id, "once")
    first, again = (web.client.post("/hooks/slack", content=body, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == {**first.json(), "duplicate": True}
    web.fail(run_id, "SHIP")
    assert web.client.post("/hooks/slack", content=body, headers=headers).json()["duplicate"] is True
    assert statuses(web, run_id)[:2] == ("failed", 2)


def test_many_copies_of_the_command_at_once_relaunch_once(web):
    run_id = started(web)["deploy"]
    web.fail(run_id, "SHIP")
    body, headers = signed("/relaunch", run_id, "many")

    async def send():
        async with httpx.AsyncClient(base_url=str(web.client.base_url), timeout=20) as client:
            copies = (client.post("/hooks/slack", content=body, headers=headers) for _ in range(50))
            return await asyncio.gather(*copies)

    answers = asyncio.run(send())
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [202]
    assert {answer.json()["runs"][0]["id"] for answer in answers} == {run_id}
    assert statuses(web, run_id)[:2] == ("queued", 2)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("/relaunch", "no-such-run", "deploy: What it names is no run's id."),
        ("/relaunch", "01900000-0000-7000-8000-000000000000", "No run has the id"),
        ("/relaunch", "  ", "relaunch `text` gave an empty text; expected a run's id"),
        ("/odd", "abc", "relaunch `length(text)` gave a number; expected a run's id"),
        ("/nothing", "x", 'the event "/nothing" is not "/relaunch"'),
    ],
)
def test_what_cannot_be_relaunched_is_said(web, name, text, reason):
    answer = command(web, name, text, f"t-{text}{name}")
    assert (answer.status_code, answer.json()["runs"]) == (200, [])
    assert reason in answer.json()["reason"]
    assert web.inbox(source="slack")[0]["verdict"] == "ignored"


def test_a_run_that_goes_on_is_left_alone(web):
    run_id = started(web)["deploy"]
    answer = command(web, "/relaunch", run_id, "t-busy")
    assert (answer.status_code, answer.json()["runs"]) == (200, [])
    assert "only a run that has ended can be relaunched" in answer.json()["reason"]
    assert f"Run {run_id} is one of deploy, not of other." in answer.json()["reason"]
    assert statuses(web, run_id)[:2] == ("queued", 1)


def test_a_succeeded_run_is_run_anew(web):
    run_id = started(web)["deploy"]
    web.finish(run_id)
    (anew,) = command(web, "/relaunch", run_id, "t-anew").json()["runs"]
    assert web.run(anew["id"]).relaunch_of == run_id


# Redelivery


def redelivered(web, delivery, source="again"):
    return web.hook({"n": 1}, source, x_github_event="push", x_github_delivery=delivery)


def test_a_redelivery_relaunches_a_run_that_failed(web):
    (run,) = redelivered(web, "r-1").json()["runs"]
    web.fail(run["id"], "SHIP")
    again = redelivered(web, "r-1")
    assert (again.status_code, again.json()["runs"], again.json()["duplicate"]) == (202, [run], False)
    assert statuses(web, run["id"]) == ("queued", 2, {"BUILD": "succeeded", "SHIP": "queued"})


def test_a_redelivery_leaves_every_other_run_alone(web):
    (run,) = redelivered(web, "r-2").json()["runs"]
    again = redelivered(web, "r-2")
    assert (again.status_code, again.json()["duplicate"]) == (200, True)
    web.finish(run["id"])
    assert redelivered(web, "r-2").json()["duplicate"] is True
    assert statuses(web, run["id"])[:2] == ("succeeded", 1)
    web.client.post("/workflows/careful/runs", json={})
    (third,) = redelivered(web, "r-3").json()["runs"]
    web.client.post(f"/runs/{third['id']}/cancel", headers={"content-type": "application/json"})
    assert redelivered(web, "r-3").json()["duplicate"] is True
    assert statuses(web, third["id"])[:2] == ("canceled", 1)


def test_by_default_a_redelivery_is_ignored(web):
    run_id = started(web, delivery="r-4")["deploy"]
    web.fail(run_id, "SHIP")
    answer = web.hook({}, x_github_event="deploy", x_github_delivery="r-4")
    assert (answer.status_code, answer.json()["duplicate"]) == (200, True)
    assert statuses(web, run_id)[:2] == ("failed", 1)


def test_redeliveries_at_once_relaunch_once(web):
    (run,) = redelivered(web, "r-5").json()["runs"]
    web.fail(run["id"], "SHIP")
    raw = msgspec.json.encode({"n": 1})
    headers = {
        "x-github-event": "push",
        "x-github-delivery": "r-5",
        "x-hub-signature-256": signature(raw),
        "content-type": "application/json",
    }

    async def send():
        async with httpx.AsyncClient(base_url=str(web.client.base_url), timeout=20) as client:
            return await asyncio.gather(
                *(client.post("/hooks/again", content=raw, headers=headers) for _ in range(30))
            )

    answers = asyncio.run(send())
    assert sorted(answer.status_code for answer in answers) == [200] * 29 + [202]
    assert statuses(web, run["id"])[:2] == ("queued", 2)


# The built-in source


def ask(web, **body):
    return web.send("director", WHSEC, msgspec.json.encode(body))


def test_any_program_starts_and_relaunches_with_a_signature(web):
    answer = ask(web, workflow="deploy", payload={"n": 1})
    assert answer.status_code == 202
    (run,) = answer.json()["runs"]
    found = web.run(run["id"])
    assert (bytes(found.payload), found.trigger["source"]) == (b'{"n":1}', "director")
    web.fail(run["id"], "SHIP")
    again = ask(web, relaunch=run["id"])
    assert (again.status_code, again.json()["runs"]) == (202, [run])
    web.finish(run["id"])
    anew = ask(web, **{"relaunch": run["id"], "from": "SHIP"})
    assert anew.status_code == 202
    assert statuses(web, anew.json()["runs"][0]["id"])[2] == {
        "BUILD": "succeeded",
        "SHIP": "queued",
        "TELL": "pending",
    }


def test_its_deliveries_are_done_once(web):
    body = b'{"workflow": "other"}'
    first = web.send("director", WHSEC, body, webhook_id="msg_1")
    again = web.send("director", WHSEC, body, webhook_id="msg_1")
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json()["runs"] == first.json()["runs"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"workflow": "depoly"}, 404, 'Did you mean "deploy"'),
        ({"workflow": "off.now"}, 409, "disabled"),
        ({"workflow": "broken"}, 409, "has problems"),
        ({"workflow": "strict.ORDER", "payload": {"id": "x"}}, 422, "refuses the payload"),
        ({"workflow": "deploy", "paylod": {}}, 422, "must be"),
        ({"workflow": "deploy", "relaunch": "x"}, 422, "must be"),
        ({"workflow": 1}, 422, "must be"),
        ({"payload": {}}, 422, "must be"),
        ([1], 422, "must be"),
        ({}, 422, "must be"),
        ({"relaunch": "latest"}, 404, "no run's id"),
        ({"relaunch": "01900000-0000-7000-8000-000000000000"}, 404, "No run has the id"),
    ],
)
def test_its_sender_learns_what_is_wrong(web, body, status, words):
    answer = web.send("director", WHSEC, msgspec.json.encode(body))
    assert words in problem(answer, status)["detail"]
    entry = web.inbox(source="director")[0]
    assert (entry["verdict"], entry["secret"]) == ("refused", "DIRECTOR_WEBHOOK_SECRET")
    assert words in entry["reason"]


TOLD = """
told.first: {tasks: [ONE], triggers: [{source: director, event: told}]}
told.last: {tasks: [ONE], triggers: [{source: director, event: told}], schema: {required: [id]}}
"""


def test_its_triggers_start_what_they_can(tmp_path):
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "all.yml").write_text(TOLD)
    with serving(settings_for(tmp_path, DIRECTOR_WEBHOOK_SECRET=WHSEC)) as web:
        answer = ask(web, type="told")
        assert answer.status_code == 202, answer.text
        assert [run["workflow"] for run in answer.json()["runs"]] == ["told.first"]
        assert [one["workflow"] for one in answer.json()["refused"]] == ["told.last"]
        assert web.inbox()[0]["verdict"] == "accepted"


def test_without_its_secret_it_is_closed(tmp_path):
    with serving(settings_for(tmp_path)) as web:
        problem(web.client.post("/hooks/director", content=b"{}"), 401)
        assert web.inbox()[0]["reason"] == "no_secret: no secret is set (set DIRECTOR_WEBHOOK_SECRET)"
        assert "director" not in {source["name"] for source in web.client.get("/sources").json()["sources"]}
