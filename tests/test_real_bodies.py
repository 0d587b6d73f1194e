"""`when` and `payload` on bodies as GitHub, Stripe and Slack send them, from the workflow file to the run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
import stripe
from slack_sdk.signature import SignatureVerifier
from square.utils.webhooks_helper import verify_signature as square

from director.definitions import load
from director.signing import SignedRequest, scheme, sign, verify
from director.triggers import Router
from director.web.bodies import decode
from tests.web_fixtures import SECRET, serving, settings_for, signature

DATA = Path(__file__).parent / "data"
WORKFLOWS = """
deploy:
  tasks: [ONE]
  triggers:
    - source: github
      event: push
      when: ref == 'refs/heads/master' && !deleted
      payload:
        sha: after
        repo: repository.full_name
        files: commits[].[added, modified][][]
        by: pusher.name
tag:
  tasks: [ONE]
  triggers:
    - source: github
      event: push
      when: starts_with(ref, 'refs/tags/') && created
      payload: "{sha: head_commit.id, message: head_commit.message}"
review:
  tasks: [ONE]
  triggers:
    - source: github
      event: [pull_request.opened, pull_request.closed]
      when: pull_request.base.ref == repository.default_branch
      payload: {number: number, head: pull_request.head.sha, labels: "pull_request.labels[].name"}
merge:
  tasks: [ONE]
  triggers: [{source: github, event: pull_request.closed, when: pull_request.merged}]
publish:
  tasks: [ONE]
  triggers:
    - source: github
      event: release.published
      when: "!(release.prerelease || release.draft)"
      payload: {tag: release.tag_name, assets: length(release.assets), notes: "release.body || 'none'"}
answer:
  tasks: [ONE]
  triggers:
    - source: github
      event: issue_comment.created
      when: contains(['OWNER', 'MEMBER'], comment.author_association) && contains(comment.body, 'fixed')
      payload: {issue: issue.number, by: comment.user.login, bug: "contains(issue.labels[].name, 'bug')"}
book:
  tasks: [ONE]
  triggers:
    - source: billing
      event: invoice.paid
      when: livemode == `false` && data.object.amount_paid > `0`
      payload:
        invoice: data.object.id
        cents: data.object.amount_paid
        prices: data.object.lines.data[].pricing.price_details.price
refund:
  tasks: [ONE]
  triggers: [{source: billing, event: charge.refunded}]
weather:
  tasks: [ONE]
  triggers:
    - source: slack
      event: /weather
      when: team_id == 'T0001'
      payload: {place: text, by: user_name, reply: response_url}
paid:
  tasks: [ONE]
  triggers: [{source: square, event: payment.updated, payload: {amount: data.object.payment.amount_money.amount}}]
sources:
  square: {secret: $SQUARE_KEY}
  github: {secret: $GITHUB_WEBHOOK_SECRET}
  billing: {scheme: stripe, secret: $STRIPE_SECRET_OLD}
  slack: {secret: $SLACK_SIGNING_SECRET}
"""
# docs.stripe.com/api/events and /invoices: the fields that are used, and some beside them.
INVOICE = {
    "id": "evt_1MqqbKLt4dXK03v5qaIbiNCC",
    "object": "event",
    "api_version": "2025-03-31.basil",
    "created": 1680064028,
    "type": "invoice.paid",
    "livemode": False,
    "pending_webhooks": 1,
    "request": {"id": None, "idempotency_key": None},
    "data": {
        "object": {
            "id": "in_1MtHbELkdIwHu7ixl4OzzPMv",
            "object": "invoice",
            "amount_due": 2050,
            "amount_paid": 2050,
            "currency": "usd",
            "customer": "cus_NeZwdNtLEOXuvB",
            "status": "paid",
            "lines": {
                "object": "list",
                "has_more": False,
                "data": [{"id": "il_1", "object": "line_item", "amount": 2050, "description": "Café ☕",
                          "pricing": {"type": "price_details", "price_details": {"price": "price_1"}}}],
            },
        }
    },
}  # fmt: skip
# docs.slack.dev, "Implementing slash commands"
COMMAND = {
    "token": "gIkuvaNzQIHg97ATvDxqgjtO",
    "team_id": "T0001",
    "team_domain": "example",
    "enterprise_id": "E0001",
    "enterprise_name": "Globular Construct Inc",
    "channel_id": "C2147483705",
    "channel_name": "test",
    "user_id": "U2147483697",
    "user_name": "Steve",
    "command": "/weather",
    "text": "94070 Añasco",
    "response_url": "https://hooks.slack.com/commands/1234/5678",
    "trigger_id": "13345224609.738474920.8088930838d88f008e0",
    "api_app_id": "A123456",
}
SECRETS = {"github": SECRET, "billing": "whsec_old", "slack": "8f742231b10e8888abcd99yyyzzz85a5"}


def github(event, file):
    body = (DATA / f"github_{file}.json").read_bytes()
    headers = {"X-GitHub-Event": event, "X-GitHub-Delivery": file, "X-Hub-Signature-256": signature(body)}
    return "github", headers | {"Content-Type": "application/json"}, body


def invoice():
    event = stripe.Event.construct_from(INVOICE, "sk_test")
    body, now = str(event), int(time.time())
    mac = stripe.WebhookSignature._compute_signature(f"{now}.{body}", SECRETS["billing"])
    return "billing", {"Stripe-Signature": f"t={now},v1={mac}", "Content-Type": "application/json"}, body.encode()


def command():
    body, now = urlencode(COMMAND), str(int(time.time()))
    text = SignatureVerifier(SECRETS["slack"]).generate_signature(timestamp=now, body=body)
    headers = {"X-Slack-Request-Timestamp": now, "X-Slack-Signature": text}
    return "slack", headers | {"Content-Type": "application/x-www-form-urlencoded"}, body.encode()


SHA = "6113728f27ae82c7b1a177c8d03f9e96e0adf246"
CASES = {
    "push": (
        lambda: github("push", "push_master"),
        "deploy",
        {"sha": SHA, "repo": "Codertocat/Hello-World", "files": ["README.md"], "by": "Codertocat"},
    ),
    "push of a tag": (lambda: github("push", "push"), "tag", {"sha": SHA, "message": "Adding a .gitignore file"}),
    "pull_request": (
        lambda: github("pull_request", "pull_request"),
        "review",
        {"number": 2, "head": "ec26c3e57ca3a959ca5aad62de7213c562f8c821", "labels": ["bug"]},
    ),
    "release": (
        lambda: github("release", "release"),
        "publish",
        {"tag": "0.0.1", "assets": 0, "notes": "none"},
    ),
    "issue_comment": (
        lambda: github("issue_comment", "issue_comment"),
        "answer",
        {"issue": 1, "by": "Codertocat", "bug": True},
    ),
    "invoice": (
        invoice,
        "book",
        {"invoice": "in_1MtHbELkdIwHu7ixl4OzzPMv", "cents": 2050, "prices": ["price_1"]},
    ),
    "command": (
        command,
        "weather",
        {"place": "94070 Añasco", "by": "Steve", "reply": "https://hooks.slack.com/commands/1234/5678"},
    ),
}
"""What comes, and the one workflow that it starts with which payload."""
OTHERS = {
    "push": {"tag": "when `starts_with(ref, 'refs/tags/') && created` gave false"},
    "push of a tag": {"deploy": "when `ref == 'refs/heads/master' && !deleted` gave false"},
    "pull_request": {"merge": "when `pull_request.merged` gave false"},
}
"""Why others that wait for the same event do not start."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = tmp_path_factory.mktemp("bodies")
    (made / "workflows").mkdir()
    (made / "workflows" / "all.yml").write_text(WORKFLOWS)
    return made


@pytest.mark.parametrize("name", CASES)
def test_a_body_starts_the_workflow_that_wants_it(home, name):
    deliver, workflow, payload = CASES[name]
    source, headers, body = deliver()
    project = load(home)
    assert not project.problems
    request = SignedRequest("POST", "/", [*headers.items()], body)
    verdict = verify(scheme(project.sources[source].scheme), [SECRETS[source]], request, now=time.time())
    assert verdict.ok
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    routing = Router(project.workflows.values()).route(source, verdict.event, decode(raw, body))
    assert [(match.workflow.name, match.payload) for match in routing.matches] == [(workflow, payload)]
    for other, reason in OTHERS.get(name, {}).items():
        assert reason in dict(routing.reasons)[other]
    assert "the event" not in str(routing.reasons), "where one starts, those that wait for others are no news"
    nothing = Router(project.workflows.values()).route(source, "other", {})
    assert 'the event "other" is not' in dict(nothing.reasons)[workflow]


@pytest.fixture(scope="module")
def web(home):
    with serving(settings_for(home, SLACK_SIGNING_SECRET=SECRETS["slack"])) as running:
        yield running


@pytest.mark.parametrize("name", CASES)
def test_a_delivery_becomes_a_run(web, name):
    deliver, workflow, payload = CASES[name]
    source, headers, body = deliver()
    answer = web.client.post(f"/hooks/{source}", content=body, headers=headers)
    assert answer.status_code == 202, answer.text
    (started,) = answer.json()["runs"]
    run = web.client.get(f"/runs/{started['id']}").json()
    assert (run["workflow"], run["payload"], run["trigger"]["source"]) == (workflow, payload, source)
    again = web.client.post(f"/hooks/{source}", content=body, headers=headers)
    assert (again.status_code, again.json()["duplicate"]) == (200, True)


@pytest.mark.parametrize("name", CASES)
def test_a_body_that_was_changed_on_the_way_is_refused(web, name):
    source, headers, body = CASES[name][0]()
    form = "urlencoded" in headers["Content-Type"]
    changed = body.replace(b"Steve", b"Steven") if form else json.dumps(json.loads(body), indent=1).encode()
    assert web.client.post(f"/hooks/{source}", content=changed, headers=headers).status_code == 401


def test_what_square_signs_is_its_address_too(tmp_path):
    """Given a proxy before the service, then it is DIRECTOR_PUBLIC_URL that the sender has signed."""
    url = "https://director.example.com/hooks/square?from=square"
    payment = {"amount_money": {"amount": 100, "currency": "EUR"}, "note": "Café"}
    body = json.dumps({"type": "payment.updated", "event_id": "e-1", "data": {"object": {"payment": payment}}})
    (name, text), *_ = sign(scheme("square"), "key", SignedRequest("POST", url, [], body.encode()), now=0)
    assert square(request_body=body, signature_header=text, signature_key="key", notification_url=url)
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "all.yml").write_text(WORKFLOWS)
    public = {"SQUARE_KEY": "key", "DIRECTOR_PUBLIC_URL": "https://director.example.com"}
    headers = {name: text, "Content-Type": "application/json"}
    with serving(settings_for(tmp_path, **public)) as web:
        answer = web.client.post("/hooks/square?from=square", content=body.encode(), headers=headers)
        assert (answer.status_code, answer.json()["delivery"]) == (202, "e-1")
        assert web.client.post("/hooks/square", content=body.encode(), headers=headers).status_code == 401
        wrong = "taken for https://director.example.com/hooks/square: is DIRECTOR_PUBLIC_URL right?"
        assert web.inbox()[0]["reason"].endswith(wrong)
