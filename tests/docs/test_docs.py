"""The documentation names what the code has: every setting, problem code, event type and route; its code runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.variables import settings_by_variable

from pipeserve import errors
from pipeserve.events import EventType
from pipeserve.jobs import JobStatus
from pipeserve.sdk.target import load_target

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "examples" / "README.md"])


def shown(default: object) -> str:
    """A default as the documentation writes it."""
    if default is None or default == "":  # an empty variable counts as not set
        return "not set"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def test_every_setting_has_a_heading_and_no_heading_is_left_over() -> None:
    headings = re.findall(r"^### `([A-Z_]+)`$", (DOCS / "configuration.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(settings_by_variable())


@pytest.mark.parametrize(("variable", "default"), settings_by_variable().items())
def test_the_documented_default_is_the_default(variable: str, default: object) -> None:
    section = (DOCS / "configuration.md").read_text().split(f"### `{variable}`\n")[1].split("\n#")[0]
    documented = re.search(r"^Default: (.+?)\.$", section, re.MULTILINE)
    assert documented, f"{variable}: no line 'Default: ….'"
    if default is not ...:
        assert documented.group(1) == shown(default)


def test_the_table_in_the_readme_names_every_setting() -> None:
    rows = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert rows == set(settings_by_variable())


def test_the_http_page_names_every_problem_code_event_type_and_job_state() -> None:
    page = (DOCS / "http.md").read_text()
    codes = {kind.code for kind in errors.ProblemError.__subclasses__() if kind is not errors.InvocationError}
    for word in [*codes, *EventType, *JobStatus]:
        assert f"`{word}`" in page, f"docs/http.md does not name {word}"


def test_the_http_page_names_every_route() -> None:
    from fastapi.routing import APIRoute

    from pipeserve_api.routes import (
        artifacts,
        events,
        explain,
        invoke,
        jobs,
        logs,
        operations,
        streams,
        submissions,
        tokens,
        visualizations,
    )

    page = (DOCS / "http.md").read_text()
    modules = (jobs, submissions, logs, visualizations, artifacts, explain, streams, events, tokens, operations)
    paths = [route.path for module in modules for route in module.router.routes if isinstance(route, APIRoute)]
    for path in [invoke.PATH, *paths]:
        named = path.replace("{job_id}", "{id}")
        assert named == "/" or f"{named}`" in page, f"docs/http.md does not name {path}"


def test_the_command_line_page_has_every_command_with_its_options() -> None:
    from typer.main import get_command

    from pipeserve.cli.main import build_app

    page = (DOCS / "cli.md").read_text()
    commands: dict[str, Any] = getattr(get_command(build_app()), "commands", {})
    assert sorted(re.findall(r"^## (\w+)$", page, re.MULTILINE)) == sorted(commands)
    for name, command in commands.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for option in options - {"--help"}:
            assert option in section, f"docs/cli.md: {name} {option} is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        target = page.parent / link if link else page
        assert target.exists(), f"{page.name}: {link} is not there"
        if anchor:
            assert anchor in anchors_of(target), f"{page.name}: {link}#{anchor} is no heading"


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def documented_pipelines() -> dict[str, str]:
    """The Python blocks that define a pipeline, by its name."""
    found: dict[str, str] = {}
    for page in (ROOT / "README.md", DOCS / "authoring.md", DOCS / "runtime.md"):
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            if names := re.findall(r"^@pipeline.*\n(?:async )?def (\w+)", block, re.MULTILINE):
                found[names[-1]] = block
    return found


@pytest.mark.parametrize("name", documented_pipelines())
def test_the_pipelines_on_the_pages_can_be_loaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / f"documented_{name}.py"
    file.write_text(documented_pipelines()[name])
    assert load_target(f"{file}:{name}").pipeline.definition.name == name
