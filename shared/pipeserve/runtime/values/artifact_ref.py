"""What stands for a large output: the reference in a job's record, and the bytes on their way to a file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from typing import Any, cast

MARK = "$artifact"
"""The one member of a reference in a record."""
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,149}")
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,80}/[\w.+-]{1,80}(; ?[\w=.+-]{1,80})?", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """What a job's record holds in place of a large output."""

    name: str
    """Of the file; it has no characters that mean something to a shell, a URL or a header."""
    media_type: str
    size: int
    """In bytes."""
    sha256: str
    href: str
    """Where the service sends it from, relative to the service."""
    missing: bool = False
    """It could not be written: there is nothing to download."""

    def as_json(self) -> dict[str, Any]:
        """The reference as a JSON value."""
        members = asdict(self)
        if not self.missing:
            del members["missing"]
        return {MARK: members}

    @classmethod
    def read(cls, value: Any) -> ArtifactRef | None:
        """The reference that an output of a record is; None: it is another value.

        A caller may have had a hand in the value, if the pipeline returns what it was sent: nothing in it is trusted.
        """
        if not isinstance(value, dict) or list(cast(dict[str, Any], value)) != [MARK]:
            return None
        members: Any = cast(dict[str, Any], value)[MARK]
        if not isinstance(members, dict):
            return None
        try:
            ref = cls(**cast(dict[str, Any], members))
            sound = (
                _NAME.fullmatch(ref.name)
                and is_media_type(ref.media_type)
                and _DIGEST.fullmatch(ref.sha256)
                and ref.size >= 0
                and [type(getattr(ref, name)) for name in ("size", "href", "missing")] == [int, str, bool]
            )
        except TypeError:
            return None
        return ref if sound else None


@dataclass(frozen=True, slots=True)
class Artifact:
    """One large output of a job, on its way to its file."""

    job_id: str
    ref: ArtifactRef
    data: bytes

    @classmethod
    def of(cls, job_id: str, name: str, media_type: str, data: bytes) -> Artifact:
        """``name``: the file's name, which must be sound (:func:`sound_name`)."""
        digest = hashlib.sha256(data).hexdigest()
        href = f"/jobs/{job_id}/artifacts/{name}"
        return cls(job_id, ArtifactRef(name, media_type, len(data), digest, href), data)


def is_media_type(text: str) -> bool:
    """Whether ``text`` can stand in a reference and in a header: ``image/png``, ``text/csv; charset=utf-8``."""
    return _MEDIA_TYPE.fullmatch(text) is not None


def sound_name(text: str, suffix: str) -> str:
    """A file's name made of an output's: what could mean something else becomes an underscore."""
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", text)[:100] or "_"
    return stem + re.sub(r"[^A-Za-z0-9_.-]", "_", suffix)[:20]
