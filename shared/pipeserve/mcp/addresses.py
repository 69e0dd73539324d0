"""The ``job://`` addresses under which a client can read what a job left."""

from __future__ import annotations

from urllib.parse import quote, unquote, urlsplit

SCHEME = "job"


def job_uri(job_id: str, *parts: str | int) -> str:
    """``job://ID/result`` and the like; without ``parts`` the job's record."""
    return "/".join([f"{SCHEME}://{quote(job_id, safe='')}", *(quote(str(part), safe="") for part in parts)])


def parse_uri(uri: str) -> tuple[str, list[str]]:
    """The job's id and the parts that follow it. Raises ValueError for another kind of address."""
    pieces = urlsplit(uri)
    if pieces.scheme != SCHEME or not pieces.netloc:
        raise ValueError(f"{uri!r} is no address of a job, such as {SCHEME}://ID/result")
    return unquote(pieces.netloc), [unquote(part) for part in pieces.path.split("/") if part]
