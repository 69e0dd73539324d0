"""The command line's page has every command of a group, with its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from pipeserve.cli.main import build_app

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def subcommands() -> dict[str, Any]:
    """The commands of groups, as ``jobs list``."""
    commands: dict[str, Any] = getattr(get_command(build_app()), "commands", {})
    return {
        f"{group} {name}": command
        for group, given in commands.items()
        for name, command in getattr(given, "commands", {}).items()
    }


@pytest.mark.parametrize(("name", "command"), subcommands().items(), ids=list(subcommands()))
def test_a_groups_section_has_each_command_with_its_options(name: str, command: Any) -> None:
    group = name.split(maxsplit=1)[0]
    section = PAGE.split(f"\n## {group}\n")[1].split("\n## ")[0]
    own = "\n".join(line for line in section.splitlines() if line.startswith(f"| `{name} "))
    assert own, f"docs/cli.md: no row for {name}"
    shared = next(line for line in section.splitlines() if line.startswith(f"`pipeserve {group} "))
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    for option in options - {"--help"}:
        assert option in own or option in shared, f"docs/cli.md: {name} {option} is not there"
