"""``Secret[T]`` and ``Redact[T]``: values that observability must not show.

Both mask the value in logs, events, metadata, errors, the job's record and the cache's receipts, there also where its
text stands inside other text. The pipeline itself gets the plain value. They differ for an output: the answer to a
synchronous call carries either, but ``GET /jobs/{id}/result`` carries a redacted value only. A secret one is never
written to the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NewType, NotRequired, Required, TypeVar, get_args, get_origin

from pydantic import GetJsonSchemaHandler, SecretBytes, SecretStr
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

T = TypeVar("T")

MASK = "***"
"""What stands in the place of a masked value."""
MASKED = "x-masked"
"""Says in a JSON Schema that values are masked, and how: ``secret`` or ``redact``."""


@dataclass(frozen=True, slots=True)
class Mask:
    """Marks a type as one whose values are masked."""

    kind: Literal["secret", "redact"]

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The type's own schema; a form shows a secret's text as dots, and what is sent is not given back."""
        described = {**handler(schema), MASKED: self.kind}
        if self.kind == "secret" and described.get("type") == "string":
            described["format"] = "password"
        if handler.mode == "validation":
            described["writeOnly"] = True
        return described


Secret = Annotated[T, Mask("secret")]
Redact = Annotated[T, Mask("redact")]


def mask_of(annotation: Any) -> Mask | None:
    """How values of this type are masked; None: they are shown. Pydantic's own secret types count as secret."""
    if get_origin(annotation) is Annotated:
        value, *notes = get_args(annotation)
        return next((note for note in notes if isinstance(note, Mask)), None) or mask_of(value)
    if get_origin(annotation) in (Required, NotRequired):
        return mask_of(get_args(annotation)[0])
    if isinstance(annotation, NewType):
        return mask_of(annotation.__supertype__)
    if type(annotation).__name__ == "TypeAliasType":  # ``type Token = Secret[str]``, from Python 3.12 on
        return mask_of(annotation.__value__)
    if annotation in (SecretStr, SecretBytes):
        return Mask("secret")
    return None
