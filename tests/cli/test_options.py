from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeserve.cli.options import parse_parameters
from pipeserve.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        (str(2**70 + 1), 2**70 + 1),
        ("1e400", "1e400"),
        ("true", True),
        ("null", None),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ('{"a": 1}', {"a": 1}),
        ("plain words", "plain words"),
        ("a=b", "a=b"),
        ("", ""),
        ("{broken", "{broken"),
    ],
)
def test_a_value_is_json_where_it_can_be_and_else_a_string(text: str, value: Any) -> None:
    assert parse_parameters([f"key={text}"]) == {"key": value}


def test_a_key_may_name_a_step() -> None:
    assert parse_parameters(["embed.model=small", "text=x"]) == {"embed.model": "small", "text": "x"}


def test_a_value_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("from a file")
    (tmp_path / "image.json").write_text("[[0, 1]]")
    given = [f"text=@{tmp_path}/text", f"image=@{tmp_path}/image.json"]
    assert parse_parameters(given) == {"text": "from a file", "image": [[0, 1]]}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["text"], "write it as key=value"),
        (["=x"], "write it as key=value"),
        (["a=1", "a=2"], "-p a: given twice"),
        (["a=@/nowhere/at/all"], "-p a: can't read /nowhere/at/all: No such file"),
    ],
)
def test_what_cant_be_read_is_told(given: list[str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_parameters(given)
