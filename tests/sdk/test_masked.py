"""What is masked of a type's values: the whole, or parts at any depth, read from annotations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, NamedTuple, NewType, NotRequired, Optional, TypedDict, TypeVar

import pytest
from pydantic import AliasChoices, BaseModel, Field, RootModel, SecretBytes, SecretStr

from pipeserve import Redact, Secret, Stream
from pipeserve.sdk.masked import parts_of

T = TypeVar("T")
Token = NewType("Token", Secret[str])


class Tree(BaseModel):
    name: str
    key: Secret[str] = Field("s", alias="theKey")
    note: Redact[str] | None = None
    children: list[Tree] = []


class Chosen(BaseModel):
    key: Secret[str] = Field(validation_alias=AliasChoices("secretKey", "key"), serialization_alias="shownKey")


class Plain(BaseModel):
    name: str
    children: list[Plain] = []


@dataclass
class Login:
    user: str
    password: SecretStr


@dataclass
class Box(Generic[T]):
    inner: T


class Described(TypedDict):
    key: NotRequired[Secret[str]]
    name: str


class Pair(NamedTuple):
    name: str
    pin: Secret[int]


class Keys(RootModel[dict[str, Secret[str]]]):
    pass


LEAF = Tree(name="leaf", theKey="k2", note="n2")
TREE = Tree(name="root", theKey="k1", children=[LEAF])

CASES: dict[str, tuple[Any, Any, list[Any], Any, Any]] = {
    # type, value, masked values in it, its JSON, the JSON masked
    "whole": (Secret[str], "k", ["k"], "k", "***"),
    "named": (Annotated[Secret[str], "token"], "k", ["k"], "k", "***"),
    "new type": (Token, "k", ["k"], "k", "***"),
    "optional": (
        Optional[Secret[str]],  # noqa: UP045 - as much code has it
        "k",
        ["k"],
        "k",
        "***",
    ),
    "nothing there": (Secret[str] | None, None, [None], None, None),
    "pydantic's text": (SecretStr, SecretStr("k"), [SecretStr("k")], "k", "***"),
    "pydantic's bytes": (SecretBytes | int, SecretBytes(b"k"), [SecretBytes(b"k")], "k", "***"),
    "list": (list[Redact[int]], [1, 2], [1, 2], [1, 2], ["***", "***"]),
    "dict": (dict[str, list[Secret[str]]], {"a": ["k"]}, ["k"], {"a": ["k"]}, {"a": ["***"]}),
    "tuple": (tuple[int, Secret[str]], (1, "k"), ["k"], [1, "k"], [1, "***"]),
    "any number": (tuple[Secret[str], ...], ("a", "b"), ["a", "b"], ["a", "b"], ["***", "***"]),
    "dataclass": (Login, Login("ann", SecretStr("k")), [SecretStr("k")], {"user": "ann", "password": "k"}, None),
    "generic": (Box[list[Secret[str]]], Box(["k"]), ["k"], {"inner": ["k"]}, {"inner": ["***"]}),
    "typed dict": (Described, {"key": "k", "name": "n"}, ["k"], {"key": "k", "name": "n"}, {"key": "***", "name": "n"}),
    "named tuple": (Pair, Pair("n", 1234), [1234], ["n", 1234], ["n", "***"]),
    "root model": (Keys, Keys({"a": "k"}), ["k"], {"a": "k"}, {"a": "***"}),
    "aliases": (Chosen, Chosen.model_validate({"key": "k"}), ["k"], {"secretKey": "k", "shownKey": "k"}, None),
    "a stream": (Stream[Secret[str]], iter(["k"]), [], None, None),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_masked_is_found_in_values_and_in_json(case: str) -> None:
    annotation, value, masked, json, hidden = CASES[case]
    parts = parts_of(annotation)
    assert parts is not None
    assert list(parts.values(value)) == masked
    if hidden is not None:
        assert parts.hide(json) == hidden


def test_a_type_that_holds_itself_is_masked_at_every_depth() -> None:
    parts = parts_of(Tree)
    assert parts is not None
    assert list(parts.values(TREE)) == ["k1", None, "k2", "n2"]
    given = TREE.model_dump(by_alias=True)
    shown = parts.hide(given)
    assert (shown["theKey"], shown["children"][0]["theKey"], shown["children"][0]["note"]) == ("***", "***", "***")
    assert (shown["name"], shown["note"]) == ("root", None)
    kept = parts.hide(given, secrets_only=True)
    assert (kept["theKey"], kept["children"][0]["note"]) == ("***", "n2")
    assert given["theKey"] == "k1"
    assert parts.secret


@pytest.mark.parametrize("annotation", [str, Any, Plain, list[Plain], dict[str, int], int | None, Stream[str]])
def test_a_type_without_masks_has_no_parts(annotation: Any) -> None:
    assert parts_of(annotation) is None


def test_what_is_only_redacted_is_no_secret() -> None:
    parts = parts_of(dict[str, Redact[str]])
    assert parts is not None
    assert not parts.secret
    assert parts.hide({"a": "b"}, secrets_only=True) == {"a": "b"}


def test_what_looks_masked_and_can_not_be_read_is_masked() -> None:
    @dataclass
    class Local:
        key: Secret[Nowhere]  # type: ignore[name-defined]  # noqa: F821
        name: str

    parts = parts_of(Local)
    assert parts is not None
    assert parts.hide({"key": "k", "name": "n"}) == {"key": "***", "name": "n"}
