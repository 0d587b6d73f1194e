"""What providers ask before they send: answered as each documents it, and starting nothing."""

from __future__ import annotations

import hashlib
import hmac

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.web_fixtures import SECRET, problem, serving, settings_for

PRIVATE = Ed25519PrivateKey.from_private_bytes(b"fedcba9876543210fedcba9876543210")
HOOKS = """
any.hook:
  tasks: [ONE]
  triggers: [{source: slack}, {source: discord}, {source: zoom}, {source: meta}, {source: github, event: ping}]
sources:
  slack: {secret: [$SLACK_OLD, $SLACK_SECRET]}
  discord: {secret: $DISCORD_PUBLIC_KEY}
  zoom: {secret: [$ZOOM_OLD, $ZOOM_SECRET]}
  meta: {secret: $META_SECRET, verify_token: $META_TOKEN}
  page: {scheme: meta, secret: [$META_OLD, $META_SECRET]}
  github: {secret: $GITHUB_WEBHOOK_SECRET}
"""
SECRETS = {
    "SLACK_SECRET": "slack",
    "SLACK_OLD": "slack-old",
    "ZOOM_SECRET": "zoom",
    "ZOOM_OLD": "zoom-old",
    "META_SECRET": "meta",
    "META_TOKEN": "pick me",
    "DISCORD_PUBLIC_KEY": PRIVATE.public_key().public_bytes_raw().hex(),
}


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "workflows").mkdir()
    (home / "workflows" / "all.yml").write_text(HOOKS)
    with serving(settings_for(home, **SECRETS)) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_started(web):
    yield
    assert web.client.get("/runs").json()["runs"] == []


def test_slacks_url_verification(web):
    """docs.slack.dev, url_verification."""
    body = b'{"token": "x", "challenge": "3eZbrw1aB", "type": "url_verification"}'
    answer = web.send("slack", "slack", body)
    assert (answer.status_code, answer.json()) == (200, {"challenge": "3eZbrw1aB"})
    problem(web.send("slack", "wrong", body), 401)


def test_discords_ping(web):
    """docs.discord.com, "Interactions": the ping is answered, a wrong signature refused; Discord tries both."""
    private = PRIVATE.private_bytes_raw().hex()
    body = b'{"id": "1", "application_id": "2", "type": 1}'
    answer = web.send("discord", private, body)
    assert (answer.status_code, answer.json()) == (200, {"type": 1})
    problem(web.send("discord", "00" * 32, body), 401)


def test_who_gives_discord_a_command_is_told_what_became_of_it(tmp_path):
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "all.yml").write_text(
        "w: {tasks: [ONE], triggers: [{source: discord, when: data.name == 'deploy'}]}\n"
        "sources: {discord: {secret: $DISCORD_PUBLIC_KEY}}\n"
    )
    private = PRIVATE.private_bytes_raw().hex()
    with serving(settings_for(tmp_path, **SECRETS)) as other:
        answer = other.send("discord", private, b'{"id": "3", "type": 2, "data": {"name": "deploy"}}').json()
        run = answer["runs"][0]["url"]
        assert (answer["type"], answer["data"]) == (4, {"content": f"w: {run}", "flags": 64})
        answer = other.send("discord", private, b'{"id": "4", "type": 2, "data": {"name": "x"}}').json()
        assert (
            answer["data"]["content"]
            == answer["reason"]
            == "w: trigger 1: when `data.name == 'deploy'` gave false"
        )


@pytest.mark.parametrize("secret", ["zoom", "zoom-old"])
def test_zooms_url_validation(web, secret):
    """developers.zoom.us: the token comes back with its HMAC, made with the secret that Zoom signed with."""
    body = (
        b'{"payload": {"plainToken": "qgg8vlvZRS6UYooatFL8Aw"}, "event_ts": 1, "event": "endpoint.url_validation"}'
    )
    answer = web.send("zoom", secret, body)
    mac = hmac.new(secret.encode(), b"qgg8vlvZRS6UYooatFL8Aw", hashlib.sha256).hexdigest()
    assert (answer.status_code, answer.json()) == (
        200,
        {"plainToken": "qgg8vlvZRS6UYooatFL8Aw", "encryptedToken": mac},
    )
    problem(web.send("zoom", "wrong", body), 401)
    assert web.inbox(source="zoom", verdict="handshake")[0]["reason"] == "zoom-url-validation"


@pytest.mark.parametrize("payload", ["1", "{}", "null", '{"plainToken": ["a"]}', '{"plainToken": "\\ud800"}'])
def test_an_odd_validation_is_no_bug(web, payload):
    body = f'{{"payload": {payload}, "event": "endpoint.url_validation"}}'.encode()
    assert web.send("zoom", "zoom", body).status_code in (200, 400)


def test_metas_challenge(web):
    """developers.facebook.com, "Verification requests"."""
    asked = {"hub.mode": "subscribe", "hub.verify_token": "pick me", "hub.challenge": "1158201444"}
    answer = web.client.get("/hooks/meta", params=asked)
    assert (answer.status_code, answer.text) == (200, "1158201444")
    assert answer.headers["content-type"].startswith("text/plain")
    for key, value in (("hub.verify_token", "meta"), ("hub.verify_token", ""), ("hub.mode", "unsubscribe")):
        problem(web.client.get("/hooks/meta", params={**asked, key: value}), 401)
    assert "verify_token" in web.inbox(source="meta")[0]["reason"]
    problem(web.client.get("/hooks/meta"), 401)
    problem(web.client.get("/hooks/meta?hub.mode=subscribe&hub.verify_token=pick%20me"), 401)
    assert web.client.get("/hooks/github", params=asked).status_code == 405


def test_without_a_verify_token_the_secrets_are_meant(web):
    asked = {"hub.mode": "subscribe", "hub.verify_token": "meta", "hub.challenge": "7"}
    assert web.client.get("/hooks/page", params=asked).text == "7"
    problem(web.client.get("/hooks/page", params={**asked, "hub.verify_token": ""}), 401)


def test_githubs_ping_starts_nothing_even_where_a_trigger_wants_it(web):
    answer = web.send("github", SECRET, msgspec.json.encode({"zen": "…"}), x_github_event="ping")
    assert (answer.status_code, answer.json()["reason"]) == (200, "a ping starts nothing")
    assert web.inbox()[0]["verdict"] == "handshake"


def test_a_handshake_is_never_replayed(web):
    """Given a trigger for whatever the source sends, then a replay starts no run that the delivery did not."""
    assert web.hook({"zen": "Keep it simple."}, x_github_event="ping").json()["runs"] == []
    entry = web.inbox()[0]
    answer = web.client.post(f"/deliveries/{entry['id']}/replay", json={})
    assert "was a handshake" in problem(answer, 409)["detail"]
