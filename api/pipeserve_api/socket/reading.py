"""What a client sent, as a frame; and if it is none, why not, in the words of HTTP."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel, ValidationError

from pipeserve.errors import BadRequestError, InvalidParametersError, PayloadTooLargeError, ProblemError
from pipeserve_api.schemas import parse
from pipeserve_api.socket.frames import (
    CLIENT_FRAME,
    MAX_REF,
    Cancel,
    Credit,
    Invoke,
    Ping,
    Subscribe,
    Unsubscribe,
)

Operation = Invoke | Subscribe | Unsubscribe | Cancel
Frame = Operation | Ping | Credit

_MODELS: dict[str, type[BaseModel]] = {
    "invoke": Invoke,
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "cancel": Cancel,
    "ping": Ping,
    "credit": Credit,
}
_OF_THE_SOCKET = frozenset({"op", "ref", "mode", "idempotency_key", "cache", "types"})
"""Keys of an ``invoke`` that are no part of the body that it stands for."""


class UnreadableFrame(Exception):
    """It can't be obeyed. ``ref``: the client's, if that at least could be read."""

    def __init__(self, error: ProblemError, ref: str | None = None) -> None:
        super().__init__(error.detail)
        self.error = error
        self.ref = ref


def read_frame(text: str | None, limit: int) -> tuple[Frame, dict[str, Any]]:
    """The frame, and its members as they were sent. ``text``: None for a binary one. Raises UnreadableFrame."""
    if text is None:
        raise UnreadableFrame(BadRequestError("Send JSON in text frames; this one is binary."))
    body = text.encode()
    if len(body) > limit:  # a server may have a limit of its own, and close
        raise UnreadableFrame(PayloadTooLargeError(f"A frame may have {limit} bytes (PIPESERVE_MAX_BODY)."))
    try:
        sent = parse(body, "The frame")
    except ProblemError as error:
        raise UnreadableFrame(error) from None
    if not isinstance(sent, dict):
        raise UnreadableFrame(BadRequestError('A frame is a JSON object, such as {"op": "ping"}.'))
    members = cast(dict[str, Any], sent)
    ref = members.get("ref")
    ref = ref if isinstance(ref, str) and len(ref) <= MAX_REF else None
    op = members.get("op")
    if not isinstance(op, str) or op not in _MODELS:
        said = "it says none" if "op" not in members else f"not {str(op)[:40]!r}"
        raise UnreadableFrame(BadRequestError(f"op must be one of {', '.join(_MODELS)}; {said}."), ref)
    try:
        return CLIENT_FRAME.validate_python(members), members
    except ValidationError as error:
        raise UnreadableFrame(_explain(error, op), ref) from None


def body_of(members: dict[str, Any]) -> dict[str, Any]:
    """The body of ``POST /invoke`` that an ``invoke`` frame stands for."""
    return {name: value for name, value in members.items() if name not in _OF_THE_SOCKET}


def _explain(error: ValidationError, op: str) -> InvalidParametersError:
    errors: list[dict[str, Any]] = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        name = ".".join(str(part) for part in item["loc"][1:])  # the first names the op
        if item["type"] == "extra_forbidden":
            known = ", ".join(_MODELS[op].model_fields) if "." not in name else "those that the schema names"
            errors.append({"name": name, "type": "unknown", "detail": f"key {name!r} is unknown; known: {known}"})
        else:
            errors.append({"name": name, "type": item["type"], "detail": f"{name}: {item['msg']}"})
    return InvalidParametersError("; ".join(item["detail"] for item in errors), errors=errors)
