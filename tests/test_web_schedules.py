"""Schedules over HTTP: what is shown, and a clock from outside."""

import pytest

from director.models import time_ms
from tests.web_fixtures import serving, settings_for

FILE = """
hourly:
  tasks: [ONE]
  periodic:
    - {crontab: "0 * * * *", timezone: Europe/Berlin, payload: {full: true}, catchup: none}
    - {interval: 86400, enabled: false}
often:
  tasks: [ONE]
  periodic: {interval: 0.1, overlap: skip}
plain: {tasks: [ONE]}
"""


@pytest.fixture(params=["tiny", "redis"])
def web(request, tmp_path):
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "all.yml").write_text(FILE)
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    with serving(settings_for(tmp_path, url)) as running:
        yield running


def test_schedules_are_shown_and_a_tick_fires_them(web):
    before = {(one["workflow"], one["crontab"]): one for one in web.client.get("/schedules").json()["schedules"]}
    assert list(before) == [("hourly", "0 * * * *"), ("hourly", None), ("often", None)]
    hourly = before["hourly", "0 * * * *"]
    assert (hourly["timezone"], hourly["payload"], hourly["enabled"]) == ("Europe/Berlin", {"full": True}, True)
    assert (hourly["interval"], hourly["catchup"], hourly["overlap"]) == (None, "none", "allow")
    assert (hourly["next_due"], hourly["last_run"], hourly["skipped"]) == (None, None, 0)
    assert before["hourly", None]["enabled"] is False

    # No scheduler runs here: the first tick writes the schedules down.
    first = web.client.post("/tick").json()
    assert (first["fired"], first["requeued"]) == (0, 0)
    answer = web.client.post("/tick")
    while not answer.json()["fired"]:
        answer = web.client.post("/tick")
    assert (answer.status_code, answer.json()["fired"]) == (200, 1)
    assert time_ms(answer.json()["next_due"]) > time_ms(first["next_due"])

    after = {(one["workflow"], one["crontab"]): one for one in web.client.get("/schedules").json()["schedules"]}
    often = after["often", None]
    run = web.client.get(f"/runs/{often['last_run']}").json()
    assert run["trigger"] == {"kind": "schedule", "schedule": often["id"], "due_at": often["last_due"]}
    assert after["hourly", "0 * * * *"]["next_due"].endswith(":00:00.000Z")
    assert after["hourly", None]["next_due"] is None

    # The run has not ended, and the schedule must be alone.
    while not often["skipped"]:
        assert web.client.post("/tick").json()["fired"] == 0
        often = web.client.get("/schedules").json()["schedules"][2]
    assert f"its last run was going on: {run['id']}" in often["last_skip"]

    status = web.client.get("/status").json()["workflows"]
    assert status["hourly"]["next_due"] == after["hourly", "0 * * * *"]["next_due"]
    assert status["plain"]["next_due"] is None
    assert web.client.get("/workflows/hourly").json()["next_due"] == status["hourly"]["next_due"]
    assert web.client.get("/status/plain").json()["next_due"] is None
    shown = web.client.get("/workflows/often").json()["periodic"]
    assert [(one["interval"], one["overlap"]) for one in shown] == [(0.1, "skip")]


def test_a_tick_needs_the_token(tmp_path):
    with serving(settings_for(tmp_path, DIRECTOR_TOKEN="t0ken")) as web:
        for path in ("/tick", "/schedules"):
            method = "POST" if path == "/tick" else "GET"
            assert web.client.request(method, path).status_code == 401
            assert web.client.request(method, path, headers={"Authorization": "Bearer t0ken"}).status_code == 200
