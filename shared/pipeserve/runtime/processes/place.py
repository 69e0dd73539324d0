"""How a new process finds what this one has: modules, the functions of steps, and the pipeline with its ``on_init``.

A fresh interpreter imports by name. That is not enough for a pipeline loaded from ``path/file.py``, whose module may
stand under a name that nobody could import, and not for ``__main__``. So a module is named with its file as well.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from types import BuiltinFunctionType, ModuleType
from typing import Any, cast

from pipeserve.errors import DefinitionError
from pipeserve.sdk.definition import PipelineDefinition, StepDefinition
from pipeserve.sdk.pipeline import Pipeline
from pipeserve.sdk.step import Step

_MAIN_ALIAS = "__mp_main__"
"""What a parent's ``__main__`` is called in a child, as in ``multiprocessing``: its main block must not run there."""


@dataclass(frozen=True, slots=True)
class ModulePlace:
    """A module of this process, for another one to import."""

    name: str
    file: str | None
    package: str | None = None
    """Of ``__main__``: what its relative imports are relative to."""

    @classmethod
    def of(cls, name: str) -> ModulePlace | None:
        """Where this module is; None for what was typed into a prompt."""
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if name != "__main__":
            return cls(name, os.path.abspath(file) if file else None)
        if not file or not file.endswith(".py"):
            return None
        sys.modules.setdefault(_MAIN_ALIAS, cast(ModuleType, module))  # values that come back are of its classes
        return cls(name, os.path.abspath(file), getattr(module, "__package__", None))

    def load(self) -> ModuleType:
        """The module, imported if it is not there yet. Raises whatever the import raises."""
        if self.name == "__main__":
            return self._load_main()
        loaded = sys.modules.get(self.name)
        if loaded is not None:
            return loaded
        if self.file is None or _file_of(self.name) == self.file:
            return importlib.import_module(self.name)
        spec = importlib.util.spec_from_file_location(self.name, self.file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{self.file} can't be imported", name=self.name, path=self.file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[self.name]
            raise
        return module

    def _load_main(self) -> ModuleType:
        loaded = sys.modules.get(_MAIN_ALIAS)
        if loaded is not None:
            return loaded
        assert self.file is not None
        module = ModuleType(_MAIN_ALIAS)
        module.__file__ = self.file
        module.__package__ = self.package
        before = sys.modules["__main__"]
        sys.modules[_MAIN_ALIAS] = sys.modules["__main__"] = module
        try:
            code = SourceFileLoader(_MAIN_ALIAS, self.file).get_code(_MAIN_ALIAS)
            assert code is not None
            exec(code, vars(module))
        except BaseException:
            del sys.modules[_MAIN_ALIAS]
            sys.modules["__main__"] = before
            raise
        return module


@dataclass(frozen=True, slots=True)
class StepPlace:
    """A step's function."""

    module: ModulePlace
    qualname: str

    @classmethod
    def of(cls, step: StepDefinition) -> StepPlace:
        """Where another process finds it. Raises DefinitionError, saying why, if it can't."""
        fn = step.fn
        name, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
        if isinstance(fn, BuiltinFunctionType) or not isinstance(name, str) or not isinstance(qualname, str):
            raise _unreachable(step, f"{fn!r} is no function of a module")
        if "<lambda>" in qualname:
            raise _unreachable(step, "a lambda has no name to find it by")
        if "<locals>" in qualname:
            raise _unreachable(step, f"{qualname} is made inside another function")
        module = ModulePlace.of(name)
        if module is None:
            raise _unreachable(step, f"{qualname} was typed into a prompt or a notebook, which is no file")
        if _function(_lookup(sys.modules.get(name), qualname)) is not fn:
            raise _unreachable(step, f"{name}.{qualname} is something else by now")
        return cls(module, qualname)

    def find(self) -> Callable[..., Any]:
        """The function, in this process. Raises whatever the import of its module raises."""
        found = _function(_lookup(self.module.load(), self.qualname))
        if not callable(found):
            raise AttributeError(f"module {self.module.name!r} has no function {self.qualname!r} in this process")
        return found


@dataclass(frozen=True, slots=True)
class PipelinePlace:
    """A pipeline, for its hooks; without ``qualname`` only its module, for the classes of values."""

    module: ModulePlace | None
    qualname: str | None

    @classmethod
    def of(cls, pipeline: PipelineDefinition) -> PipelinePlace:
        """Where another process finds it. Raises DefinitionError if it has an ``on_init`` and can't be found."""
        name = str(getattr(pipeline.fn, "__module__", None))
        module = ModulePlace.of(name) if name in sys.modules else None
        if pipeline.on_init is None:
            return cls(module, None)
        loaded = sys.modules.get(name)
        names = [str(getattr(pipeline.fn, "__qualname__", "")), *(vars(loaded) if loaded is not None else ())]
        found = next((each for each in names if _definition(_lookup(loaded, each)) is pipeline), None)
        if module is None or found is None:
            raise DefinitionError(
                f"pipeline {pipeline.name!r}: its on_init must run in the processes of its steps too, but they can't "
                "import the pipeline. Define it at the top level of a module"
            )
        return cls(module, found)

    def find(self) -> PipelineDefinition | None:
        """The pipeline, in this process, if it has an ``on_init``. Raises whatever the import of its module raises."""
        module = None if self.module is None else self.module.load()
        return None if self.qualname is None else _definition(_lookup(module, self.qualname))


def _unreachable(step: StepDefinition, why: str) -> DefinitionError:
    return DefinitionError(
        f'step {step.name!r}: executor="process" needs a function that another process can import, but {why}. '
        "Define it at the top level of a module"
    )


def _file_of(name: str) -> str | None:
    """The file that importing ``name`` would run, if there is one."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # no such package, or a parent that is none
        return None
    return None if spec is None or spec.origin is None else os.path.abspath(spec.origin)


def _lookup(module: ModuleType | None, qualname: str) -> Any:
    value: Any = module
    for part in qualname.split("."):
        value = getattr(value, part, None)
    return value


def _function(value: Any) -> Any:
    return cast(Step[..., Any], value).fn if isinstance(value, Step) else value


def _definition(value: Any) -> PipelineDefinition | None:
    return cast(Pipeline[..., Any], value).definition if isinstance(value, Pipeline) else None
