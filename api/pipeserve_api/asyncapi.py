"""The AsyncAPI document: what streams, the WebSocket and webhooks carry, from the models that the code works with."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from pipeserve.errors import Problem
from pipeserve.events import EventType
from pipeserve.jobs import Job
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.deployment import Deployment
from pipeserve.webhooks.signature import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from pipeserve_api.event_data import EVENT_DATA
from pipeserve_api.openapi import add_schema, security_schemes
from pipeserve_api.socket import frames

_SCHEMAS = "#/components/schemas/"
_CLIENT_FRAMES: tuple[type[BaseModel], ...] = (
    frames.Invoke,
    frames.Subscribe,
    frames.Unsubscribe,
    frames.Cancel,
    frames.Ping,
    frames.Credit,
)
_SERVER_FRAMES: tuple[type[BaseModel], ...] = (
    frames.AckFrame,
    frames.EventFrame,
    frames.SnapshotFrame,
    frames.GapFrame,
    frames.EndFrame,
    frames.PongFrame,
    frames.ErrorFrame,
)
_SSE = (
    "Server-Sent Events. `retry:` comes first, `: ping` every 15 s of silence. Each event's `id` is its position: send "
    "it as Last-Event-ID to go on after it, at any replica. The terminal event ends the stream; having read all is 204."
)


def document(
    version: str, deployment: Deployment, definition: PipelineDefinition, *, needs_key: bool
) -> dict[str, Any]:
    """The document of one deployment: AsyncAPI 3.0."""
    schemas = _schemas(definition)
    event_messages = [_event_name(kind) for kind in EventType]
    messages = {_event_name(kind): _message(_event_name(kind), _words(EVENT_DATA[kind])) for kind in EventType}
    messages["snapshot"] = _message("Job", "The job as it is, for a subscriber without a position. Without an id.")
    messages["gap"] = _message("Gap", "Events that are gone from the log. Its id is the last of them.")
    for frame in (*_CLIENT_FRAMES, *_SERVER_FRAMES):
        messages[_frame_name(frame)] = _message(_frame_name(frame), _words(frame))
    messages["webhook"] = _message("Event", "One event, as the POST's body.") | {"headers": _WEBHOOK_HEADERS}
    streamed = [*event_messages, "snapshot", "gap"]
    to_socket, from_socket = ([_frame_name(frame) for frame in kind] for kind in (_CLIENT_FRAMES, _SERVER_FRAMES))
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": definition.name,
            "version": version,
            "description": deployment.description or f"The pipeline {definition.name!r}, served by pipeserve.",
        },
        "defaultContentType": "application/json",
        "channels": {
            "jobStream": _channel("/stream/{job_id}", _SSE, streamed) | _JOB_ID,
            "invokeStream": _channel(
                "/invoke", "POST with Accept: text/event-stream. " + _SSE, [*event_messages, "gap"]
            ),
            "socket": _channel(
                "/stream",
                "A WebSocket; one JSON object in each text frame. Subprotocol: pipeserve.v1, if offered.",
                [*to_socket, *from_socket],
            )
            | {"bindings": {"ws": {"method": "GET"}}},
            "webhook": _channel(None, "Where a job's `webhook.url` points. Standard Webhooks 1.0.", ["webhook"]),
        },
        "operations": {
            "sendJobStream": _operation("send", "jobStream", streamed),
            "sendInvokeStream": _operation("send", "invokeStream", [*event_messages, "gap"]),
            "receiveFrames": _operation("receive", "socket", to_socket),
            "sendFrames": _operation("send", "socket", from_socket),
            "sendWebhook": _operation("send", "webhook", ["webhook"]),
        },
        "components": {"messages": messages, "schemas": schemas}
        | ({"securitySchemes": _security()} if needs_key else {}),
    }


def _schemas(definition: PipelineDefinition) -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    add_schema(schemas, "Parameters", definition.input_schema(), prefix=f"{definition.name}.")
    add_schema(schemas, "Outputs", definition.output_schema(), prefix=f"{definition.name}.")
    for model in (Problem, Job, *_CLIENT_FRAMES, *_SERVER_FRAMES):
        name = _frame_name(model) if model in (*_CLIENT_FRAMES, *_SERVER_FRAMES) else model.__name__
        mode = "validation" if model in _CLIENT_FRAMES else "serialization"
        add_schema(schemas, name, model.model_json_schema(mode=mode, ref_template=_SCHEMAS + "{model}"))
    schemas["invokeFrame"]["properties"]["parameters"] = {"$ref": _SCHEMAS + "Parameters"}
    for kind, data in EVENT_DATA.items():
        add_schema(schemas, data.__name__, data.model_json_schema(mode="serialization"))
        schemas[_event_name(kind)] = _event_schema(kind, data)
    schemas["PipelineCompleted"]["properties"]["outputs"] = {"$ref": _SCHEMAS + "Outputs"}
    schemas["Event"] = {
        "title": "Event",
        "description": "One event of a job's log, of any type.",
        "oneOf": [{"$ref": _SCHEMAS + _event_name(kind)} for kind in EventType],
        "discriminator": "event_type",
    }
    schemas["eventFrame"]["properties"]["event"] = {"$ref": _SCHEMAS + "Event"}
    schemas["Gap"] = {
        "title": "Gap",
        "type": "object",
        "properties": {
            "from": {"type": "integer", "description": "The first one's number"},
            "to": {"type": "integer", "description": "The last one's number"},
            "reason": {"type": "string"},
        },
        "required": ["from", "to", "reason"],
    }
    return schemas


def _event_schema(kind: EventType, data: type[BaseModel]) -> dict[str, Any]:
    text_or_null = {"type": ["string", "null"]}
    members: dict[str, Any] = {
        "seq": {"type": "integer", "minimum": 1, "description": "Its number in the job's log, without a hole"},
        "event_type": {"const": kind.value},
        "job_id": {"type": "string", "format": "uuid"},
        "attempt": {"type": "integer", "minimum": 0, "description": "0 before the first"},
        "timestamp": {"type": "string", "format": "date-time"},
        "step_name": text_or_null,
        "level": text_or_null,
        "message": text_or_null,
        "data": {"$ref": _SCHEMAS + data.__name__},
        "error": {"oneOf": [{"$ref": _SCHEMAS + "Problem"}, {"type": "null"}]},
    }
    return {
        "title": kind.value,
        "description": _words(data),
        "type": "object",
        "properties": members,
        "required": list(members),
    }


def _channel(address: str | None, description: str, messages: list[str]) -> dict[str, Any]:
    named = {name: {"$ref": f"#/components/messages/{name}"} for name in messages}
    return {"address": address, "description": description, "messages": named}


_JOB_ID = {"parameters": {"job_id": {"description": "The job's id"}}}


def _operation(action: str, channel: str, messages: list[str]) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
    }


def _message(schema: str, words: str) -> dict[str, Any]:
    return {"name": schema, "summary": words, "payload": {"$ref": _SCHEMAS + schema}}


def _event_name(kind: EventType) -> str:
    return f"{kind.value}Event"


def _frame_name(frame: type[BaseModel]) -> str:
    """``invokeFrame``, ``eventFrame`` …: by its ``op``, whichever way it goes."""
    return frame.__name__[0].lower() + frame.__name__[1:].removesuffix("Frame") + "Frame"


def _words(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").partition("\n\n")[0].replace("\n    ", " ")


def _security() -> dict[str, Any]:
    """OpenAPI's, as AsyncAPI calls them."""
    schemes = security_schemes()
    return {
        name: {**scheme, "type": "httpApiKey"} if scheme["type"] == "apiKey" else scheme
        for name, scheme in schemes.items()
    }


_WEBHOOK_HEADERS = {
    "type": "object",
    "properties": {
        ID_HEADER: {"type": "string", "description": "The same for each try at one event"},
        TIMESTAMP_HEADER: {"type": "string", "description": "Unix time in seconds of the try"},
        SIGNATURE_HEADER: {"type": "string", "description": "v1,BASE64; several have spaces between"},
    },
    "required": [ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER],
}
