"""What pipeserve reads from the environment."""

from __future__ import annotations

import inspect

from pydantic_settings import BaseSettings

from pipeserve import settings


def settings_by_variable() -> dict[str, object]:
    """Every variable of ``pipeserve.settings`` with its default; ``...`` where a function makes it."""
    models = [
        model
        for _, model in inspect.getmembers(settings, inspect.isclass)
        if issubclass(model, BaseSettings) and model.__module__ == settings.__name__
    ]
    return {
        str(field.alias): ... if field.default_factory is not None else field.default
        for model in models
        for field in model.model_fields.values()
    }
