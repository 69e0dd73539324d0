"""The systemd units: systemd understands them, they are shut in, and they fit the service that they run."""

from __future__ import annotations

import os
import re
import string
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import yaml
from tests.programs import needed
from tests.service import ROOT
from tests.variables import settings_by_variable

FOLDER = ROOT / "deploy" / "systemd"
SERVICES = ("api", "deploy", "worker")
PROGRAM = "/opt/pipeserve/bin/pipeserve"
PAGE = (ROOT / "docs" / "systemd.md").read_text()
OF_OTHERS = {"HOME", "PIPELINE", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONUNBUFFERED"}
MOST_EXPOSED = 20
"""Tenths: what ``systemd-analyze security`` may find; a service that is not shut in has 96."""

services = pytest.mark.parametrize("name", SERVICES)


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = needed("systemd-analyze", "apt-get install systemd", variable="PIPESERVE_SYSTEMD_ANALYZE")
    command = [program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def unit(name: str) -> Path:
    return FOLDER / f"pipeserve-{name}.service"


def lines(path: Path) -> list[tuple[str, str]]:
    """Assignments, in their order: a name may come several times."""
    found = [line.partition("=") for line in path.read_text().splitlines() if line and line[0] not in "#[;"]
    return [(name, value) for name, _, value in found]


def values(path: Path) -> dict[str, str]:
    """Those of names that come once."""
    return dict(lines(path))


def example() -> dict[str, str]:
    return values(FOLDER / "pipeserve.env.example")


def environment(name: str) -> dict[str, str]:
    """What the process is given: the file of settings wins over the unit."""
    own = [pair.partition("=") for key, value in lines(unit(name)) if key == "Environment" for pair in value.split()]
    return {key: value for key, _, value in own} | example()


def command(name: str) -> list[str]:
    """As systemd would start it with the example's settings."""
    return [string.Template(word).substitute(environment(name)) for word in values(unit(name))["ExecStart"].split()]


def test_systemd_finds_nothing_to_say(tmp_path: Path) -> None:
    for path in FOLDER.glob("pipeserve*"):
        (tmp_path / path.name).write_text(path.read_text().replace(PROGRAM, sys.executable))
    units = [path for path in tmp_path.iterdir() if path.suffix in (".service", ".target")]
    assert len(units) == len(SERVICES) + 1
    done = analyze("verify", "--man=no", *units)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_systemd_does_not_understand_is_found(tmp_path: Path) -> None:
    path = tmp_path / unit("deploy").name
    path.write_text(unit("deploy").read_text().replace(PROGRAM, sys.executable).replace("UMask=", "UMusk="))
    assert "UMusk" in analyze("verify", "--man=no", path).stderr


@services
def test_each_service_is_shut_in(name: str) -> None:
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", unit(name))
    assert done.returncode == 0, done.stdout


def test_all_services_are_shut_in_alike() -> None:
    blocks = [path.read_text().partition("# It may write")[2] for path in map(unit, SERVICES)]
    assert "ProtectSystem=strict" in blocks[0]
    assert len(set(blocks)) == 1


@services
def test_every_variable_is_one_that_something_reads(name: str) -> None:
    known = set(settings_by_variable()) | OF_OTHERS
    assert set(environment(name)) <= known, set(environment(name)) - known
    assert ("EnvironmentFile", "/etc/pipeserve/pipeserve.env") in lines(unit(name))


@services
def test_every_command_is_one_that_pipeserve_has(name: str) -> None:
    from typer.main import get_command

    from pipeserve.cli.main import build_app

    commands = getattr(get_command(build_app()), "commands", {})
    program, subcommand, *arguments = command(name)
    assert program == PROGRAM
    assert subcommand == name
    options = {option for parameter in commands[subcommand].params for option in parameter.opts}
    assert {word for word in arguments if word.startswith("-")} <= options


@pytest.mark.parametrize("name", ["api", "worker"])
def test_a_stop_takes_longer_than_what_is_done_in_it(name: str) -> None:
    found = values(unit(name))
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    there = int(compose["x-environment"]["PIPESERVE_DRAIN_SECONDS"])
    after = int(compose["services"][name]["stop_grace_period"].removesuffix("s")) - there
    assert int(found["TimeoutStopSec"]) >= int(environment(name)["PIPESERVE_DRAIN_SECONDS"]) + after
    assert found["KillSignal"] == "SIGTERM"
    assert found["KillMode"] == "mixed", "the supervisor tells its processes itself"
    assert found["Restart"] == "on-failure"
    assert found["StartLimitIntervalSec"] == "0", "a store that is away for long must not end it for good"


def test_one_worker_process_that_takes_all_memory_does_not_end_the_others() -> None:
    assert values(unit("worker"))["OOMPolicy"] == "continue"


def test_keys_are_demanded() -> None:
    assert environment("api")["PIPESERVE_REQUIRE_AUTH"] == "true"
    assert example()["PIPESERVE_KEYS_FILE"].startswith("/etc/pipeserve/keys/")


def test_the_services_start_after_the_deployment_and_stop_as_one() -> None:
    wanted = values(FOLDER / "pipeserve.target")["Wants"].split()
    assert sorted(wanted) == [unit(name).name for name in SERVICES]
    for name in SERVICES:
        assert values(unit(name))["PartOf"] == "pipeserve.target"
    for name in ("api", "worker"):
        assert "pipeserve-deploy.service" in values(unit(name))["After"].split()


def test_what_the_services_write_is_theirs() -> None:
    folders = values(unit("worker"))["StateDirectory"].split()
    artifacts = Path(example()["PIPESERVE_ARTIFACTS_URL"].removeprefix("file://"))
    assert str(artifacts.relative_to("/var/lib")) in folders
    account = (FOLDER / "sysusers.conf").read_text().splitlines()[-1].split()
    assert account[:2] == ["u", values(unit("worker"))["User"]]


@pytest.mark.e2e
def test_the_deployment_is_made_by_the_command_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text(
        "from pipeserve import pipeline as flow, step\n"
        "@step\ndef shout(text: str) -> str:\n    return text.upper()\n"
        "@flow\ndef pipeline(text: str) -> str:\n    return shout(text)\n"
    )
    there = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("PIPESERVE_", "ZENML_"))},
        "PYTHONPATH": str(tmp_path),
        "PIPESERVE_DATA_DIR": str(tmp_path / "data"),
    }
    program = str(Path(sys.executable).with_name("pipeserve"))
    made = [
        subprocess.run(
            [program, *command("deploy")[1:]], env=there, capture_output=True, text=True, timeout=40, check=True
        )
        for _ in range(2)
    ]
    assert uuid.UUID(made[0].stdout.strip()) == uuid.UUID(made[1].stdout.strip())


def test_the_page_copies_every_file_that_is_there() -> None:
    for path in FOLDER.iterdir():
        pattern = "pipeserve*.service" if path.suffix == ".service" else path.name
        assert f"deploy/systemd/{pattern}" in PAGE
    named = set(re.findall(r"`(\w+)=", PAGE)) | set(re.findall(r"^(\w+)=", PAGE, re.MULTILINE))
    written = {key for path in FOLDER.glob("*.service") for key, _ in lines(path)}
    others = named - set(settings_by_variable())
    assert others <= written | {"ReadWritePaths", "MemoryDenyWriteExecute"}, others - written
