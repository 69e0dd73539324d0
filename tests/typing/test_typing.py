"""Types are tested like behaviour: pyright in strict mode reads one good file and one bad file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def errors_of(file: Path, tmp_path: Path) -> list[int]:
    """The lines at which pyright in strict mode reports an error."""
    pyright = Path(sys.executable).with_name("pyright")
    if not pyright.exists() and shutil.which("pyright") is None:
        pytest.skip("pyright is not installed: `make lint` installs it")
    settings = tmp_path / "pyrightconfig.json"
    shutil.copy(file, tmp_path)
    settings.write_text(json.dumps({"typeCheckingMode": "strict", "include": [file.name]}))
    command = [str(pyright), "--outputjson", "--pythonpath", sys.executable, "--project", str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    return [found["range"]["start"]["line"] + 1 for found in report["generalDiagnostics"]]


@pytest.mark.timeout(180)  # pyright's first start unpacks itself
def test_types_flow_through_the_decorators(tmp_path: Path) -> None:
    assert errors_of(HERE / "good.py", tmp_path) == []


@pytest.mark.timeout(180)
def test_mistakes_are_reported_where_they_are_made(tmp_path: Path) -> None:
    file = HERE / "bad.py"
    marked = [number for number, line in enumerate(file.read_text().splitlines(), 1) if line.endswith("# error")]
    assert sorted(set(errors_of(file, tmp_path))) == marked
