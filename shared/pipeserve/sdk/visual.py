"""Types that say how a value is shown: a step that returns one shows it, and ``visualize`` takes one."""

from __future__ import annotations

import base64
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


class HTML(str):
    """A page or a piece of one, as HTML: ``return HTML("<h1>Done</h1>")``. A browser shows it without its scripts."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Any text."""
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Text of this media type."""
        return {**handler(schema), "contentMediaType": "text/html"}


class Markdown(str):
    """Text in Markdown: ``return Markdown("# Done")``."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Any text."""
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Text of this media type."""
        return {**handler(schema), "contentMediaType": "text/markdown"}


class PNG(bytes):
    """An image, as the bytes of a PNG file: ``return PNG(path.read_bytes())``. As JSON it is base64."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Bytes, or text in base64."""

        def read(value: object) -> PNG:
            if isinstance(value, str):
                return cls(base64.b64decode(value, validate=True))
            if isinstance(value, bytes):
                return cls(value)
            raise ValueError("it must be text in base64")

        return core_schema.no_info_plain_validator_function(
            read,
            serialization=core_schema.plain_serializer_function_ser_schema(_encoded, when_used="json"),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Text of this encoding."""
        return {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()
