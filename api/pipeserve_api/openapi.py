"""The OpenAPI document: FastAPI's own, with ``/invoke`` described by the schemas of the pipeline that is served."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from pipeserve.errors import Problem
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.deployment import Deployment
from pipeserve_api.models import Accepted, InvocationResult
from pipeserve_api.schemas import MAX_BATCH
from pipeserve_api.terms import InvocationTerms, JobTerms

_REF = "#/components/schemas/{model}"
_PROBLEM = {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}}
_OWN_WORDS = {
    "description": "A problem in the words of the pipeline's author: any status from 400 to 599",
    "content": _PROBLEM,
}
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_TOKEN_SCHEME = {
    "token": {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "A token of the one job that is read, from POST /jobs/{id}/token",
    }
}
_FOR_TOKENS = ("/jobs/{job_id}", "/stream/", "/events")
STREAM: dict[str, Any] = {
    "text/event-stream": {
        "schema": {
            "contentMediaType": "text/event-stream",
            "description": "Server-Sent Events: `id` is the position, `event` the type, `data` the event as one line "
            "of JSON with `seq`, `event_type`, `job_id` and more. /asyncapi.json describes every type.",
            "examples": ['id: 3\nevent: step_started\ndata: {"seq":3,"event_type":"step_started",…}\n\n'],
        }
    }
}
"""What an answer that is a stream holds; OpenAPI 3.1 has no words for its single events.

No ``type``: some readers take the schema for the whole text, others for each event.
"""
_OPEN_PATHS = ("/health", "/health/live", "/health/ready")
KEY_HEADER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key with the same body is the same job, however often it is sent.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
_REPLAYED: dict[str, Any] = {
    "Idempotency-Replayed": {
        "description": "true: the job was there already",
        "schema": {"type": "string", "enum": ["true"]},
    }
}
_LOCATION: dict[str, Any] = {"Location": {"schema": {"type": "string"}}}
REPLAYED_HEADERS: dict[str, Any] = {"headers": _LOCATION | _REPLAYED}
"""Of a 202."""


def _body(model: str, *, required: bool = True) -> dict[str, Any]:
    return {
        "requestBody": {
            "required": required,
            "content": {"application/json": {"schema": {"$ref": _REF.format(model=model)}}},
        }
    }


JOB_BODY = _body("BatchItem")
"""For a route that takes a job for the workers: what FastAPI can't know, because the pipeline's own schema is in it."""
BATCH_BODY = _body("Batch")
"""For one that takes many."""
_INVOKE_FAILURES = (400, 409, 413, 422, 429, 500, 503, 504)


def problems(*statuses: int, own_words: bool = False) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that can fail with these statuses; ``own_words``: and as a step's author says."""
    known: dict[int | str, dict[str, Any]] = {
        str(status): {"description": HTTPStatus(status).phrase, "content": _PROBLEM} for status in statuses
    }
    return known | {"default": _OWN_WORDS} if own_words else known


def describe(app: FastAPI, deployment: Deployment, definition: PipelineDefinition, *, needs_key: bool) -> None:
    """Make ``app`` show the document of this deployment. It is made at the first look."""
    app.openapi = partial(_document, app, deployment, definition, needs_key=needs_key)


def _document(
    app: FastAPI, deployment: Deployment, definition: PipelineDefinition, *, needs_key: bool
) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=definition.name,
            version=app.version,
            openapi_version="3.1.0",
            description=deployment.description or f"The pipeline {definition.name!r}, served by pipeserve.",
            routes=app.routes,
        )
        schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (Problem, InvocationResult, Accepted):
            add_schema(schemas, model.__name__, model.model_json_schema(mode="serialization", ref_template=_REF))
        _replace_validation_errors(document["paths"], schemas)
        document["paths"] = {"/invoke": {"post": _invoke(schemas, deployment, definition)}, **document["paths"]}
        _may_be_refused(document["paths"])
        if needs_key:
            _require_key(document)
        app.openapi_schema = document
    return app.openapi_schema


def _may_be_refused(paths: dict[str, Any]) -> None:
    """What any request but a probe's may meet before its route: its origin or host, its key's scopes, its limits."""
    for path, operations in paths.items():
        if path not in _OPEN_PATHS:
            for operation in operations.values():
                operation["responses"] = problems(403, 429) | operation["responses"]


def security_schemes() -> dict[str, Any]:
    """The ways to be let in."""
    return _SECURITY_SCHEMES | _TOKEN_SCHEME


def _require_key(document: dict[str, Any]) -> None:
    document["components"]["securitySchemes"] = security_schemes()
    document["security"] = [{name: []} for name in _SECURITY_SCHEMES]  # any one of them will do
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path in _OPEN_PATHS:
                operation["security"] = []
                continue
            operation["responses"]["401"] = problems(401)["401"]
            if method == "get" and path.startswith(_FOR_TOKENS):
                operation["security"] = [*document["security"], *({name: []} for name in _TOKEN_SCHEME)]


def _replace_validation_errors(paths: dict[str, Any], schemas: dict[str, Any]) -> None:
    """FastAPI adds its own 422 to each route that takes something; here that is a problem like any other."""
    for path in paths.values():
        for operation in path.values():
            if "422" in operation["responses"]:
                operation["responses"]["422"] = problems(422)["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)


def _invoke(schemas: dict[str, Any], deployment: Deployment, definition: PipelineDefinition) -> dict[str, Any]:
    add_schema(schemas, "Parameters", definition.input_schema(), prefix=f"{definition.name}.")
    add_schema(schemas, "Outputs", definition.output_schema(), prefix=f"{definition.name}.")
    parameters_required = ["parameters"] if definition.input_schema().get("required") else []
    for name, terms in (("Invocation", InvocationTerms), ("BatchItem", JobTerms)):
        body = terms.model_json_schema(ref_template=_REF)
        members = {"parameters": {"$ref": _REF.format(model="Parameters")}, **body["properties"]}
        add_schema(schemas, name, body | {"title": name, "properties": members, "required": parameters_required})
    schemas["Batch"] = {
        "title": "Batch",
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "items": {"$ref": _REF.format(model="BatchItem")},
                "minItems": 1,
                "maxItems": MAX_BATCH,
            }
        },
        "required": ["items"],
        "additionalProperties": False,
    }
    result = schemas["InvocationResult"]
    result["properties"]["outputs"] = {"$ref": _REF.format(model="Outputs")}
    return {
        "tags": ["invoke"],
        "summary": f"Run {definition.name}",
        "description": deployment.description or "",
        "operationId": "invoke",
        "parameters": [
            {
                "name": "mode",
                "in": "query",
                "description": "async: answer 202 at once, and let a worker run the job.",
                "schema": {"type": "string", "enum": ["sync", "async"], "default": "sync"},
            },
            {
                "name": "Prefer",
                "in": "header",
                "description": "respond-async, and wait=SECONDS after which a 202 is preferred (RFC 7240).",
                "schema": {"type": "string"},
            },
            {
                "name": "Cache-Control",
                "in": "header",
                "description": "no-cache: use no cached result of a step; no-store: nor keep any.",
                "schema": {"type": "string"},
            },
            KEY_HEADER,
        ],
        **_body("Invocation", required=bool(parameters_required)),
        "responses": {
            "200": {
                "description": "The outputs; or the run's events, if Accept asks for them",
                "headers": {
                    "Cache-Status": {
                        "description": "What the step cache did, a member for each call that can be cached (RFC 9211)",
                        "schema": {"type": "string"},
                    },
                    **_REPLAYED,
                },
                "content": {
                    "application/json": {"schema": {"$ref": _REF.format(model="InvocationResult")}},
                    **STREAM,
                },
            },
            "202": {
                "description": "The job goes on; follow its links",
                **REPLAYED_HEADERS,
                "content": {"application/json": {"schema": {"$ref": _REF.format(model="Accepted")}}},
            },
            **problems(*_INVOKE_FAILURES, own_words=True),
        },
    }


def add_schema(schemas: dict[str, Any], name: str, schema: dict[str, Any], *, prefix: str = "") -> None:
    """Add ``schema`` under ``name``, and the definitions that it brings along under theirs, after ``prefix``.

    The prefix keeps an author's ``Job`` or ``Problem`` apart from the service's.
    """
    schemas[name] = _hoisted(schema, schemas, prefix)


def _hoisted(schema: Any, schemas: dict[str, Any], prefix: str) -> Any:
    """``schema`` with its definitions moved to ``schemas``, and its references pointing there."""
    if isinstance(schema, list):
        return [_hoisted(value, schemas, prefix) for value in cast(list[Any], schema)]
    if not isinstance(schema, dict):
        return schema
    hoisted: dict[str, Any] = {}
    for key, value in cast(dict[str, Any], schema).items():
        if key == "$defs":
            for inner, definition in value.items():
                schemas.setdefault(prefix + inner, _hoisted(definition, schemas, prefix))
        elif key == "$ref" and isinstance(value, str):
            hoisted[key] = value.replace("#/$defs/", f"#/components/schemas/{prefix}")
        else:
            hoisted[key] = _hoisted(value, schemas, prefix)
    return hoisted
