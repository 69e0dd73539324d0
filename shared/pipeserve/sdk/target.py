"""Loads a pipeline by its target: ``package.module:pipeline`` or ``path/file.py:pipeline``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pipeserve.errors import TargetError
from pipeserve.sdk.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class LoadedTarget:
    """A pipeline and the canonical way to name it."""

    pipeline: Pipeline[..., Any]
    target: str
    """``package.module:pipeline``, or ``/absolute/file.py:pipeline``."""


def load_target(target: str) -> LoadedTarget:
    """Import the target's module (a file: with its folder first on ``sys.path``) and return its pipeline.

    Raises TargetError: the module or name isn't there, importing it failed, or it is no pipeline.
    """
    place, separator, name = target.rpartition(":")
    if not separator or not place or not name:
        raise TargetError(f"{target!r} is no target: write package.module:pipeline or path/file.py:pipeline")
    if place.endswith(".py"):
        path = Path(place).expanduser().resolve()
        module = _import_file(path, target)
        canonical = f"{path}:{name}"
    else:
        module = _import_module(place, target)
        canonical = f"{place}:{name}"
    value: Any = module
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise TargetError(f"{target!r}: {place} has no {name!r}{_pipelines_in(module)}") from None
    if not isinstance(value, Pipeline):
        raise TargetError(f"{target!r} is a {type(value).__name__}, not a pipeline{_pipelines_in(module)}")
    return LoadedTarget(cast(Pipeline[..., Any], value), canonical)


def _pipelines_in(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Pipeline)]
    return f"; its pipelines: {', '.join(names)}" if names else "; it has no pipeline"


def _import_module(name: str, target: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:  # as `python -m` does
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetError(
                f"{target!r}: there is no module {error.name!r} here ({folder}) or on the Python path"
            ) from None
        raise TargetError(f"{target!r}: importing {name} failed: {error}") from error
    except Exception as error:  # whatever the author's module raises: report it as theirs
        raise TargetError(f"{target!r}: importing {name} failed: {type(error).__name__}: {error}") from error


def _import_file(path: Path, target: str) -> ModuleType:
    if not path.is_file():
        raise TargetError(f"{target!r}: there is no file {path}")
    loaded = next(
        (m for m in sys.modules.values() if getattr(m, "__file__", None) == str(path) and m.__name__ != "__main__"),
        None,
    )
    if loaded is not None:
        return loaded
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # Under its own name, so that its siblings and pickles find it; unless that name is taken by another module.
    name = path.stem if path.stem not in sys.modules and path.stem.isidentifier() else f"pipeserve_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"{target!r}: {path} can't be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the author's module raises: report it as theirs
        del sys.modules[name]
        raise TargetError(f"{target!r}: importing {path.name} failed: {type(error).__name__}: {error}") from error
    return module
