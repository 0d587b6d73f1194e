"""Every preset, signed and verified by the SDK of its vendor, or as its documentation says where there is none."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace

import discord_interactions
import gidgethub.sansio
import gidgetlab.sansio
import paddle_billing.Notifications as paddle
import pywa.utils
import standardwebhooks
import stripe
import svix.webhooks
from nacl.signing import SigningKey
from slack_sdk.signature import SignatureVerifier
from square.utils.webhooks_helper import verify_signature as square

from director.signing import SignedRequest, scheme, sign
from tests.vendors import node

Headers = list[tuple[str, str]]
URL = "https://director.example.com/hooks/x?of=square"
SEED = SigningKey(b"fedcba9876543210fedcba9876543210")
PUBLIC = bytes(SEED.verify_key)
DIGITS, MORE, EMPTY = "a timestamp that is not ASCII", "a signature with more", "an empty secret"
WHSEC = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


@dataclass(frozen=True)
class Vendor:
    """How a preset's vendor signs and verifies."""

    scheme: str
    sign: Callable[[str, bytes, int], Headers]
    """Of a secret, a body and POSIX seconds."""
    accepts: Callable[[str, bytes, dict[str, str]], object] | None = None
    """Of a secret, a body and headers with lower-case names; refuses with something false or an exception."""
    secret: str = "s3cret"
    more: Headers = field(default_factory=list)
    """What else the vendor sends."""
    takes: Sequence[str] = ()
    """Spoilings that the vendor's own SDK takes, though we do not."""


def _mac(secret: str, content: bytes) -> str:
    return hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()


def _documented(name: str, text: str = "{}") -> Callable[[str, bytes, int], Headers]:
    """Sign the body as hex, as documented: for a vendor without an SDK."""
    return lambda secret, body, at: [(name, text.format(_mac(secret, body)))]


def _ours(preset: str) -> Callable[[str, bytes, int], Headers]:
    """Sign with our own: for a vendor whose SDK only verifies."""

    def signed(secret: str, body: bytes, at: int) -> Headers:
        return sign(scheme(preset), secret, SignedRequest("POST", URL, [], body), now=at)

    return signed


def _octokit(secret: str, body: bytes, at: int) -> Headers:
    return [("X-Hub-Signature-256", node.ask("octokit", "sign", secret, body))]


def _stripe(secret: str, body: bytes, at: int) -> Headers:
    mac = stripe.WebhookSignature._compute_signature(f"{at}.{body.decode()}", secret)
    return [("Stripe-Signature", f"t={at},v1={mac}")]


def _standard(sdk: type[standardwebhooks.Webhook] | type[svix.webhooks.Webhook], names: str):
    def signed(secret: str, body: bytes, at: int) -> Headers:
        text = sdk(secret).sign("msg_1", datetime.fromtimestamp(at, UTC), body.decode())
        return [(f"{names}-id", "msg_1"), (f"{names}-timestamp", str(at)), (f"{names}-signature", text)]

    def accepts(secret: str, body: bytes, headers: dict[str, str]) -> bool:
        sdk(secret).verify(body, headers)
        return True  # it raises otherwise

    return signed, accepts


def _v1a(secret: str, body: bytes, at: int) -> Headers:
    mac = base64.b64encode(SEED.sign(f"msg_1.{at}.".encode() + body).signature).decode()
    return [("webhook-id", "msg_1"), ("webhook-timestamp", str(at)), ("webhook-signature", f"v1a,{mac}")]


def _slack(secret: str, body: bytes, at: int) -> Headers:
    text = SignatureVerifier(secret).generate_signature(timestamp=str(at), body=body)
    return [("X-Slack-Request-Timestamp", str(at)), ("X-Slack-Signature", str(text))]


def _paddle(secret: str, body: bytes, at: int) -> Headers:
    mac = paddle.PaddleSignature.calculate_hmac(secret, f"{at}:".encode() + body).hexdigest()
    return [("Paddle-Signature", f"ts={at};h1={mac}")]


def _paddle_accepts(secret: str, body: bytes, headers: dict[str, str]) -> bool:
    request = SimpleNamespace(headers={"Paddle-Signature": headers["paddle-signature"]}, body=body)
    return paddle.Verifier().verify(request, paddle.Secret(secret))


def _square_accepts(secret: str, body: bytes, headers: dict[str, str]) -> bool:
    given = headers["x-square-hmacsha256-signature"]
    return square(request_body=body.decode(), signature_header=given, signature_key=secret, notification_url=URL)


def _discord(secret: str, body: bytes, at: int) -> Headers:
    mac = SEED.sign(str(at).encode() + body).signature
    return [("X-Signature-Ed25519", mac.hex()), ("X-Signature-Timestamp", str(at))]


def _discord_accepts(secret: str, body: bytes, headers: dict[str, str]) -> bool:
    signature, timestamp = headers["x-signature-ed25519"], headers["x-signature-timestamp"]
    return discord_interactions.verify_key(body, signature, timestamp, secret)


def _gidgethub_accepts(secret: str, body: bytes, headers: dict[str, str]) -> bool:
    gidgethub.sansio.validate_event(body, signature=headers["x-hub-signature-256"], secret=secret)
    return True


def _gidgetlab_accepts(secret: str, body: bytes, headers: dict[str, str]) -> object:
    return gidgetlab.sansio.Event.from_http(headers, body, secret=secret)


def _in_node(vendor: str) -> Callable[[str, bytes, dict[str, str]], object]:
    return lambda secret, body, headers: node.ask(vendor, "verify", secret, body, headers)


def _shopify(name: str) -> Headers:
    given = {"topic": "orders/create", "shop-domain": "x.myshopify.com", "api-version": "2026-01", "event-id": "2"}
    return [(f"{name}-{key}", value) for key, value in given.items()]


def _shopify_events(secret: str, body: bytes, at: int) -> Headers:
    names = ("shopify-webhook-id", "shopify-hmac-sha256")
    return [(name, value) for name, (_, value) in zip(names, _ours("shopify")(secret, body, at), strict=True)]


_signs, _accepts = _standard(standardwebhooks.Webhook, "webhook")
_svix_signs, _svix_accepts = _standard(svix.webhooks.Webhook, "svix")

VENDORS = {
    "stripe": Vendor(
        "stripe", _stripe,
        lambda secret, body, headers: stripe.WebhookSignature.verify_header(
            body.decode(), headers["stripe-signature"], secret, 300
        ),
        secret=WHSEC, takes=(DIGITS, "future"),
    ),
    "standardwebhooks": Vendor("standard", _signs, _accepts, secret=WHSEC, takes=(DIGITS, MORE)),
    "svix": Vendor("standard", _svix_signs, _svix_accepts, secret=WHSEC, takes=(DIGITS, MORE)),
    "standard-v1a": Vendor("standard-v1a", _v1a, secret="whpk_" + base64.b64encode(PUBLIC).decode()),
    "slack_sdk": Vendor(
        "slack", _slack,
        lambda secret, body, headers: SignatureVerifier(secret).is_valid_request(body, headers),
    ),
    "paddle": Vendor("paddle", _paddle, _paddle_accepts, takes=(DIGITS, EMPTY)),
    "square": Vendor("square", _ours("square"), _square_accepts),
    "discord-interactions": Vendor(
        "discord", _discord, _discord_accepts, secret=PUBLIC.hex(), takes=("stale", "future")
    ),
    "gidgethub": Vendor(
        "github", _documented("X-Hub-Signature-256", "sha256={}"), _gidgethub_accepts, takes=(EMPTY,)
    ),
    "gidgetlab": Vendor(
        "gitlab-token", lambda secret, body, at: [("X-Gitlab-Token", secret)], _gidgetlab_accepts,
        more=[("X-Gitlab-Event", "Push Hook")], takes=(EMPTY,),
    ),
    "gitlab-signing": Vendor("gitlab-signing", _signs, _accepts, secret=WHSEC, takes=(DIGITS, MORE)),
    "pywa": Vendor(
        "meta", _documented("X-Hub-Signature-256", "sha256={}"),
        lambda secret, body, headers: pywa.utils.webhook_updates_validator(
            secret, body, headers["x-hub-signature-256"]
        ),
        takes=(EMPTY,),
    ),
    "bitbucket": Vendor("bitbucket", _documented("X-Hub-Signature", "sha256={}")),
    "gitea": Vendor("gitea", _documented("X-Gitea-Signature")),
    "forgejo": Vendor("forgejo", _documented("X-Forgejo-Signature")),
    "pagerduty": Vendor("pagerduty", _documented("X-PagerDuty-Signature", "v1={}")),
    "sentry": Vendor("sentry", _documented("Sentry-Hook-Signature")),
    "bearer": Vendor("token", lambda secret, body, at: [("Authorization", f"Bearer {secret}")]),
}  # fmt: skip
NODE_VENDORS = {
    "npm octokit": Vendor("github", _octokit, _in_node("octokit")),
    "npm stripe": Vendor(
        "stripe",
        lambda secret, body, at: [("Stripe-Signature", node.ask("stripe", "sign", secret, body, at=at))],
        _in_node("stripe"), secret=WHSEC, takes=("future",),
    ),
    "npm shopify": Vendor("shopify", _ours("shopify"), _in_node("shopify"), more=_shopify("X-Shopify")),
    "npm shopify events": Vendor("shopify", _shopify_events, _in_node("shopify"), more=_shopify("shopify")),
    "npm linear": Vendor("linear", _ours("linear"), _in_node("linear")),
    # Rivet checks the JSON that it reads and writes again, and no time.
    "npm zoom": Vendor(
        "zoom", _ours("zoom"), _in_node("zoom"),
        takes=("a body with more", "a reserialised body", "stale", "future"),
    ),
    "npm grammy": Vendor("telegram", _ours("telegram"), _in_node("telegram")),
}  # fmt: skip
if not node.MISSING:
    VENDORS |= NODE_VENDORS
