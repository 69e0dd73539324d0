"""A run's outputs in the forms that others get: the whole of them for the caller who waits, and what is kept.

What is kept may differ in two ways. A large output is a reference there, and its bytes are an artifact. A masked one
(``Secret``, ``Redact``) does not show.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic_core import from_json
from pydantic_core import to_json as values_to_json

from pipeserve.runtime.capture.masks import Masks
from pipeserve.runtime.values.artifact_ref import MARK, Artifact, ArtifactRef, sound_name
from pipeserve.runtime.values.encoding import to_json
from pipeserve.runtime.values.materializers import Materializers
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.masked_parts import Parts, Whole
from pipeserve.sdk.materializer import NotStorableError
from pipeserve.sdk.secret import MASK

_log = logging.getLogger(__name__)
_MASKED = orjson.dumps(MASK)


@dataclass(slots=True)
class KeptOutputs:
    """What a job's record gets of a run's outputs, where that is not the same as the answer."""

    json: bytes
    """One JSON object, output name to value: references for large ones; secret ones masked."""
    shown: bytes | None = None
    """The same where all masked ones are masked: for the record's view and for events. None: the same."""
    artifacts: tuple[Artifact, ...] = ()
    """What is to be written before the record refers to it."""
    lost: bool = False
    """Whether some of it could not be written, and the references say so."""

    def written(self) -> None:
        """The artifacts are written: their bytes need no longer be held."""
        self.artifacts = ()

    def missing(self) -> None:
        """The artifacts could not be written: from now on the references say so."""
        names = {artifact.ref.name for artifact in self.artifacts}
        self.json = _missing(self.json, names)
        self.shown = None if self.shown is None else _missing(self.shown, names)
        self.artifacts = ()
        self.lost = True


def _missing(json: bytes, names: set[str]) -> bytes:
    values: dict[str, Any] = from_json(json)
    for value in values.values():
        ref = ArtifactRef.read(value)
        if ref is not None and ref.name in names:
            value[MARK]["missing"] = True
    return values_to_json(values)


class OutputEncoder:
    """How the outputs of one pipeline are encoded. Thread-safe."""

    def __init__(self, definition: PipelineDefinition, materializers: Materializers, inline_limit: int) -> None:
        """``inline_limit``: bytes of an output up to which it stands in the record."""
        self.materializers = materializers
        self.inline_limit = inline_limit
        self.masked: Mapping[str, Parts] = {} if definition.masked is None else definition.masked.outputs
        """What is masked of each output; nothing of those that are not here."""

    def of_run(self, job_id: str, masks: Masks | None = None, *, answered: bool, kept: bool) -> RunOutputs:
        """The outputs of one run. ``answered``: a caller waits for them; ``kept``: they go into a record.

        ``masks``: what stands nowhere in what is shown.
        """
        return RunOutputs(self, job_id, masks, answered=answered, kept=kept)


class RunOutputs:
    """Collects the outputs of one run as they are encoded, one after the other."""

    def __init__(self, encoder: OutputEncoder, job_id: str, masks: Masks | None, *, answered: bool, kept: bool) -> None:
        self._encoder = encoder
        self._job_id = job_id
        self._masks = masks
        self._answered = answered
        self._kept = kept
        self._answer: dict[str, orjson.Fragment] = {}
        self._json: dict[str, bytes] = {}  # the same, where something may be masked
        self._references: dict[str, orjson.Fragment] = {}
        self._artifacts: list[Artifact] = []

    def encode(self, value: Any) -> orjson.Fragment:
        """``value`` as JSON. Raises NotJsonError."""
        return orjson.Fragment(to_json(value, self._encoder.materializers))

    def add(self, name: str, value: Any) -> None:
        """Take one output. Raises NotJsonError if it has no form in which it could be answered or kept."""
        masked = self._encoder.masked.get(name)
        keep = self._kept and (masked is None or not masked.secret)
        if keep and not self._answered and self._materialize(name, value, at_least=self._encoder.inline_limit):
            self._answer[name] = self._references[name]  # and no time is spent on JSON that nobody reads
            return
        json = to_json(value, self._encoder.materializers)
        self._answer[name] = orjson.Fragment(json)
        if masked is not None or self._masks is not None:
            self._json[name] = json
        if keep and len(json) > self._encoder.inline_limit and not self._materialize(name, value):
            self._refer(name, "application/json", ".json", json)

    def answer(self) -> bytes:
        """One JSON object with all outputs."""
        return orjson.dumps(self._answer)

    def kept(self) -> KeptOutputs | None:
        """What the record gets; None: the same as :meth:`answer`."""
        if not self._references and not self._json:
            return None
        kept = self._answer | self._references
        shown = dict(kept)
        for name in self._answer:
            masked = self._encoder.masked.get(name)
            if name in self._references:
                if isinstance(masked, Whole):
                    shown[name] = orjson.Fragment(_MASKED)
            elif name in self._json:
                if masked is not None and masked.secret:
                    kept[name] = orjson.Fragment(_hidden(self._json[name], masked, secrets_only=True))
                shown[name] = orjson.Fragment(self._shown(name, masked))
        kept_json, shown_json = orjson.dumps(kept), orjson.dumps(shown)
        return KeptOutputs(kept_json, None if shown_json == kept_json else shown_json, tuple(self._artifacts))

    def _shown(self, name: str, masked: Parts | None) -> bytes:
        json = self._json[name] if masked is None else _hidden(self._json[name], masked)
        return json if self._masks is None else self._masks.hide_json(json)

    def _materialize(self, name: str, value: Any, *, at_least: int = -1) -> bool:
        """Make the output an artifact by its type's materializer, if it has one; and more than ``at_least`` bytes."""
        materializer = self._encoder.materializers.find(value)
        if materializer is None:
            return False
        try:
            data = materializer.dump(value)
        except NotStorableError:  # its JSON is kept instead, if it has any
            return False
        except Exception:
            if not self._answered:
                raise  # the result can't be kept, so the job has failed
            # The author's code, and whatever it is: the caller has an answer.
            _log.exception("output %r of job %s is kept as JSON: its materializer failed", name, self._job_id)
            return False
        if len(data) <= at_least:
            return False
        self._refer(name, materializer.media_type, materializer.suffix, data)
        return True

    def _refer(self, name: str, media_type: str, suffix: str, data: bytes) -> None:
        taken = {artifact.ref.name.lower() for artifact in self._artifacts}
        file = sound_name(name, suffix)
        count = 1
        while file.lower() in taken:  # "a b" and "a_b"; and some disks don't tell A from a
            count += 1
            file = sound_name(f"{name[:80]}-{count}", suffix)
        artifact = Artifact.of(self._job_id, file, media_type, data)
        self._artifacts.append(artifact)
        self._references[name] = orjson.Fragment(orjson.dumps(artifact.ref.as_json()))


def _hidden(json: bytes, masked: Parts, *, secrets_only: bool = False) -> bytes:
    return values_to_json(masked.hide(from_json(json), secrets_only=secrets_only))
