"""The OpenAPI document: what Litestar derives from handlers, and what it cannot know."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.router import Router

from director import __version__
from director.access import SCOPES
from director.tokens import MAX_NAME
from director.web import auth, problems, shapes

_TEXTS = {"type": "array", "items": {"type": "string"}}
_PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457 problem details.",
    "required": ["type", "title", "status"],
    "properties": {
        **{name: {"type": "string"} for name in ("type", "title", "detail")},
        "status": {"type": "integer"},
        "problems": {**_TEXTS, "description": "Of a workflow's definition."},
        "paths": {**_TEXTS, "description": "Where a payload is refused."},
    },
}
_ANSWERS = {
    "200": "Seen before, or no trigger wants it",
    "202": "Runs were started",
    "400": "Not what its Content-Type says, or nested too deep",
    "401": "The signature is missing, malformed, wrong or stale, or the source is closed",
    "404": "No such source",
    "408": "The body took too long",
    "413": "The body is too large",
    "415": "The body has a Content-Encoding",
    "422": "The schema of every wanted workflow refuses the payload",
    "503": "The store is away, or too much is underway; send it again",
}
_ENDED = "The run has ended within `wait`, or an earlier call with the same Idempotency-Key has started it"
_PLANNED = "What would run (`plan=1`); nothing was changed"
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "maxLength": 255},
    "description": "For 72 h the same key and payload are the same run; with another payload the answer is 422.",
}
_ORDER = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "from": {"type": "string", "default": "failed", "description": "`failed`, `start` or a task's key."},
        "payload": {"type": ["object", "null"], "description": "Instead of the run's; makes a new run."},
    },
}
_TOKEN = {
    "type": "object",
    "additionalProperties": False,
    "required": ["scope"],
    "properties": {
        "scope": {"type": "string", "enum": list(SCOPES), "description": "Each includes those before it."},
        "workflows": {"type": ["array", "null"], "minItems": 1, "items": {"type": "string"}},
        "expires_in": {"type": ["string", "null"], "description": "Such as 90d, 12h or 30m; else never."},
        "name": {"type": ["string", "null"], "maxLength": MAX_NAME, "description": "Who has it."},
    },
}


def config() -> OpenAPIConfig:
    """Return the configuration: one JSON document, no pages."""
    # Below /schema there is this document only; Litestar would answer anything else with a page.
    router = Router(
        "/schema",
        route_handlers=[],
        include_in_schema=False,
        guards=[auth.require_document],
        opt={"scope": "read", "bound": "handler"},  # it is the same for everybody
    )
    return OpenAPIConfig(
        title="director",
        version=__version__,
        description="YAML workflows from signed webhooks, curl and schedules.",
        path="/schema",
        render_plugins=[_Document(path="/openapi.json")],
        openapi_router=router,
    )


class _Document(JsonRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return self.render_json(request, complete(openapi_schema))


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with bodies, problems and the webhook route; the given one is left as it is."""
    template = "#/components/schemas/{name}"
    (delivery,), more = msgspec.json.schema_components([shapes.HookAnswer], ref_template=template)
    paths = {path: dict(item) for path, item in document.get("paths", {}).items()}
    for item in paths.values():
        for method, operation in item.items():
            # Litestar describes errors in a shape of its own.
            answers = {code: answer for code, answer in operation["responses"].items() if code < "400"}
            item[method] = {**operation, "responses": {**answers, "default": _problem("Why it was refused")}}
    start, relaunch = (paths[path]["post"] for path in ("/workflows/{name}/runs", "/runs/{run_id}/relaunch"))
    bodies = ((start, {"type": "object"}), (relaunch, _ORDER), (paths["/tokens"]["post"], _TOKEN))
    for operation, body in bodies:
        required = "required" in body
        operation["requestBody"] = {"required": required, "content": {"application/json": {"schema": body}}}
    for operation, text in ((start, _ENDED), (relaunch, _PLANNED)):
        operation["responses"]["200"] = {**operation["responses"]["202"], "description": text}
    start["parameters"] = [*start["parameters"], _KEY]
    paths["/hooks/{source}"] = {"post": _hook(delivery)}
    components = dict(document.get("components", {}))
    components["schemas"] = {**components.get("schemas", {}), **more, "Problem": _PROBLEM}
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {**document, "paths": paths, "components": components, "security": [{"token": []}, {}]}


def _problem(text: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": text, "content": {problems.MEDIA_TYPE: {"schema": schema}}}


def _hook(delivery: dict[str, Any]) -> dict[str, Any]:
    fine = {"content": {"application/json": {"schema": delivery}}}
    media = ("application/json", "application/x-www-form-urlencoded")
    return {
        "tags": ["Webhooks"],
        "summary": "Take a signed delivery",
        "operationId": "ReceiveDelivery",
        "security": [],
        "parameters": [{"name": "source", "in": "path", "required": True, "schema": {"type": "string"}}],
        "requestBody": {"required": True, "content": {kind: {"schema": {}} for kind in media}},
        "responses": {
            code: {"description": text, **fine} if code < "300" else _problem(text)
            for code, text in _ANSWERS.items()
        },
    }
