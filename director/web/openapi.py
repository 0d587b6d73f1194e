"""The OpenAPI document: what Litestar derives from handlers, and what it cannot know."""

from __future__ import annotations

from typing import Any

from litestar import Request
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.router import Router

from director import __version__
from director.web import auth, problems

_PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457 problem details.",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "problems": {"type": "array", "items": {"type": "string"}, "description": "Of a workflow's definition."},
        "paths": {"type": "array", "items": {"type": "string"}, "description": "Where a payload is refused."},
    },
}
_HOOK = {
    "type": "object",
    "required": ["delivery", "runs", "duplicate", "reason"],
    "properties": {
        "delivery": {"type": "string", "description": "The sender's id of the delivery, or a new one."},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "workflow", "url"],
                "properties": {name: {"type": "string"} for name in ("id", "workflow", "url")},
            },
        },
        "duplicate": {"type": "boolean", "description": "Every run was started by an earlier copy."},
        "reason": {"type": ["string", "null"], "description": "Why nothing was started."},
        "refused": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["workflow", "reason"],
                "properties": {name: {"type": "string"} for name in ("workflow", "reason")},
            },
        },
    },
}
_HOOK_ANSWERS = {
    "200": "Seen before, or no trigger wants it",
    "202": "Runs were started",
    "400": "Not what its Content-Type says, or nested too deep",
    "401": "The signature is missing, malformed, wrong or stale, or the source is closed",
    "404": "No such source",
    "408": "The body took too long",
    "413": "The body is too large",
    "415": "The body has a Content-Encoding",
    "422": "The schema of every wanted workflow refuses the payload",
    "503": "The store is away; send it again",
}
_PAYLOAD = {"schema": {"type": "object"}}
_RELAUNCH = {
    "schema": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "from": {"type": "string", "default": "failed", "description": "`failed`, `start` or a task's key."},
            "payload": {"type": ["object", "null"], "description": "Instead of the run's; makes a new run."},
        },
    }
}
_REF = {"$ref": "#/components/schemas/Problem"}


def config() -> OpenAPIConfig:
    """Return the configuration: one JSON document, no pages."""
    return OpenAPIConfig(
        title="director",
        version=__version__,
        description="YAML workflows from signed webhooks, curl and schedules.",
        path="/schema",
        render_plugins=[_Document(path="/openapi.json")],
        # Below /schema there is this document only; Litestar would answer anything else with a page.
        openapi_router=Router(
            "/schema",
            route_handlers=[],
            include_in_schema=False,
            guards=[auth.require_access, auth.require_document],
        ),
    )


class _Document(JsonRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return self.render_json(request, complete(openapi_schema))


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with bodies, problems and the webhook route; the given one is left as it is."""
    paths = {path: dict(item) for path, item in document.get("paths", {}).items()}
    for item in paths.values():
        for method, operation in item.items():
            item[method] = _with_problems(operation)
    paths["/workflows/{name}/runs"]["post"]["requestBody"] = _body(_PAYLOAD)
    paths["/runs/{run_id}/relaunch"]["post"]["requestBody"] = _body(_RELAUNCH)
    paths["/hooks/{source}"] = {"post": _hook()}
    components = dict(document.get("components", {}))
    components["schemas"] = {**components.get("schemas", {}), "Problem": _PROBLEM}
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {**document, "paths": paths, "components": components, "security": [{"token": []}, {}]}


def _body(media: dict[str, Any]) -> dict[str, Any]:
    return {"required": False, "content": {"application/json": media}}


def _problem(text: str) -> dict[str, Any]:
    return {"description": text, "content": {problems.MEDIA_TYPE: {"schema": _REF}}}


def _with_problems(operation: dict[str, Any]) -> dict[str, Any]:
    """Return an operation whose errors are problems, which Litestar describes in a shape of its own."""
    answers = {code: answer for code, answer in operation["responses"].items() if code < "400"}
    return {**operation, "responses": {**answers, "default": _problem("Why it was refused")}}


def _hook() -> dict[str, Any]:
    answers: dict[str, Any] = {
        code: {"description": text, "content": {"application/json": {"schema": _HOOK}}}
        if code < "300"
        else _problem(text)
        for code, text in _HOOK_ANSWERS.items()
    }
    return {
        "tags": ["Webhooks"],
        "summary": "Take a signed delivery",
        "operationId": "ReceiveDelivery",
        "security": [],
        "parameters": [{"name": "source", "in": "path", "required": True, "schema": {"type": "string"}}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {}}, "application/x-www-form-urlencoded": {"schema": {}}},
        },
        "responses": answers,
    }
