"""Keys: what each opens, whose jobs it sees, and how it is replaced while the service runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.api.harness import Served, bearer, serving, wait_until
from tests.api.pipelines import shout
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from pipeserve.errors import ConfigurationError
from pipeserve.jobs import new_job_id
from pipeserve.key_file import KeyScope, digest_of, stanza
from pipeserve_api.key_ring import KeyRing

A, A_NEXT, B, READER, CANCELER, ADMIN = (f"psk_{name}" for name in ("a", "a-next", "b", "reader", "canceler", "admin"))
ZEROS = "0" * 64
MINE = (KeyScope.INVOKE, KeyScope.READ, KeyScope.CANCEL)


def write(path: Path, *stanzas: str) -> None:
    """As orchestrators do: the new file takes the old one's place at once."""
    made = path.with_suffix(".new")
    made.write_text("\n".join(stanzas))
    made.replace(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    write(
        path,
        stanza("team-a", A, MINE),
        stanza("team-b", B, MINE),
        stanza("reader", READER, [KeyScope.READ]),
        stanza("canceler", CANCELER, [KeyScope.CANCEL]),
        stanza("ops", ADMIN, [KeyScope.ADMIN]),
    )
    return path


@pytest.fixture
async def served(file: Path) -> AsyncIterator[Served]:
    async with serving(shout, service={"keys_file": file, "token_secret": "secret"}) as service:
        yield service


async def submit(served: Served, key: str) -> str:
    return await served.submit({"text": "a"}, headers=bearer(key))


async def get(served: Served, path: str, key: str, **options: Any) -> Any:
    return await served.http.get(path, headers=bearer(key), **options)


async def test_a_key_is_good_in_either_header_and_nothing_else_is(served: Served) -> None:
    for headers in (bearer(A), {"X-API-Key": A}, {"Authorization": f"bearer   {A}"}):
        assert (await served.http.get("/jobs", headers=headers)).status_code == 200, headers
    digest = digest_of(A.encode()).hex()
    for headers in ({}, {"Authorization": "Bearer"}, bearer(A[:-1]), bearer(A + "x"), bearer(digest)):
        assert (await served.http.get("/jobs", headers=headers)).status_code == 401, headers
    assert (await served.http.get("/health")).status_code == 200


async def test_a_caller_sees_its_own_jobs_only(served: Served) -> None:
    mine, theirs = await submit(served, A), await submit(served, B)
    for path in ("", "/events", "/logs", "/result", "/explain", "/visualizations", "/visualizations/1", "/artifacts/x"):
        answer = await get(served, f"/jobs/{theirs}{path}", A)
        never = await get(served, f"/jobs/{(nobodys := new_job_id())}{path}", A)
        assert (answer.status_code, never.status_code) == (404, 404), path
        assert answer.text == never.text.replace(nobodys, theirs), "tells that there is such a job"
    assert (await get(served, f"/stream/{theirs}", A)).status_code == 404
    assert (await get(served, "/events", A, params={"job": [mine, theirs]})).status_code == 404
    for path in ("cancel", "retry", "token"):
        assert (await served.http.post(f"/jobs/{theirs}/{path}", headers=bearer(A))).status_code == 404, path
    assert (await get(served, f"/jobs/{theirs}", B)).json()["status"] == "pending"
    listed = (await get(served, "/jobs", A)).json()
    assert ([job["job_id"] for job in listed["jobs"]], listed["total"]) == ([mine], 1)


async def test_an_admin_sees_all_jobs_and_whose_they_are(served: Served) -> None:
    mine, theirs = await submit(served, A), await submit(served, B)
    listed = (await get(served, "/jobs", ADMIN)).json()
    assert {job["job_id"]: job["caller"] for job in listed["jobs"]} == {mine: "team-a", theirs: "team-b"}
    assert (await served.http.post(f"/jobs/{theirs}/cancel", headers=bearer(ADMIN))).status_code == 202
    again = await served.http.post(f"/jobs/{theirs}/retry", headers=bearer(ADMIN))
    assert again.status_code == 202, again.text
    assert (await get(served, f"/jobs/{again.json()['job_id']}", B)).status_code == 200


async def test_a_synchronous_run_is_its_callers_too(served: Served) -> None:
    answer = await served.invoke({"text": "a"}, headers=bearer(A))
    job_id = answer.json()["job_id"]
    assert (await get(served, f"/jobs/{job_id}", A)).json()["caller"] == "team-a"
    assert (await get(served, f"/jobs/{job_id}", B)).status_code == 404


@pytest.mark.parametrize(
    ("key", "method", "path", "status"),
    [
        (READER, "GET", "/jobs", 200),
        (READER, "GET", "/metrics", 200),
        (READER, "GET", "/info", 200),
        (READER, "POST", "/invoke", 403),
        (READER, "POST", "/invoke/batch", 403),
        (READER, "PUT", "/jobs/0199c0de-0000-7000-8000-000000000000", 403),
        (READER, "POST", "/jobs/0199c0de-0000-7000-8000-000000000000/retry", 403),
        (READER, "POST", "/jobs/0199c0de-0000-7000-8000-000000000000/cancel", 403),
        (READER, "POST", "/jobs/0199c0de-0000-7000-8000-000000000000/token", 404),
        (CANCELER, "GET", "/jobs", 403),
        (CANCELER, "POST", "/invoke", 403),
        (CANCELER, "POST", "/jobs/0199c0de-0000-7000-8000-000000000000/cancel", 404),
        (A, "GET", "/status", 403),
        (A, "GET", "/status/", 403),
        (A, "PUT", "/status/drill", 403),
        (ADMIN, "GET", "/status", 200),
        (ADMIN, "POST", "/invoke", 422),
    ],
)
async def test_a_key_opens_what_its_scopes_name(served: Served, key: str, method: str, path: str, status: int) -> None:
    answer = await served.http.request(method, path, headers=bearer(key), json={} if method != "GET" else None)
    assert answer.status_code == status, answer.text
    if status == 403:
        assert answer.json()["code"] == "forbidden"
        assert "scope" in answer.json()["detail"]


async def test_the_same_id_or_key_of_two_callers_is_two_requests(served: Served) -> None:
    """Nobody learns of another's job by guessing how it was submitted."""
    once = {"Idempotency-Key": "once"}
    first = await served.invoke({"text": "a"}, mode="async", headers=bearer(A) | once)
    second = await served.invoke({"text": "a"}, mode="async", headers=bearer(B) | once)
    assert first.json()["job_id"] != second.json()["job_id"]
    body = {"parameters": {"text": "a"}}
    path = f"/jobs/{new_job_id()}"
    assert (await served.http.put(path, headers=bearer(A), json=body)).status_code == 202
    assert (await served.http.put(path, headers=bearer(A), json=body)).headers["idempotency-replayed"] == "true"
    refused = await served.http.put(path, headers=bearer(B), json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_mismatch")


async def test_a_link_to_a_job_shows_neither_its_caller_nor_where_it_ran(served: Served) -> None:
    job_id = await submit(served, A)
    token = (await served.http.post(f"/jobs/{job_id}/token", headers=bearer(A))).json()["token"]
    seen = (await served.http.get(f"/jobs/{job_id}", params={"token": token})).json()
    assert (seen["job_id"], seen["caller"], seen["worker"], seen["webhook"]) == (job_id, None, None, None)


async def test_a_socket_asks_for_a_scope_at_each_operation(served: Served) -> None:
    theirs = await submit(served, B)
    url = served.url.replace("http", "ws") + "/stream"
    with pytest.raises(InvalidStatus):
        await connect(url)
    async with connect(url, additional_headers=bearer(READER)) as socket:

        async def say(**frame: Any) -> Any:
            await socket.send(orjson.dumps(frame).decode())
            return orjson.loads(await asyncio.wait_for(socket.recv(), 5))

        assert (await say(op="invoke", ref="1", parameters={"text": "a"}))["problem"]["code"] == "forbidden"
        assert (await say(op="cancel", ref="2", job_id=theirs))["problem"]["code"] == "forbidden"
        assert (await say(op="subscribe", ref="3", job_id=theirs))["problem"]["code"] == "not_found"
        assert (await say(op="ping", ref="4"))["op"] == "pong"
    async with connect(url, additional_headers=bearer(A)) as socket:
        assert (await say(op="subscribe", ref="5", job_id=theirs))["problem"]["code"] == "not_found"
        assert (await say(op="cancel", ref="6", job_id=theirs))["problem"]["code"] == "not_found"
        assert (await say(op="invoke", ref="7", parameters={"text": "a"}))["op"] == "ack"


async def test_a_key_is_replaced_without_a_restart(served: Served, file: Path) -> None:
    job_id = await submit(served, A)
    url = served.url.replace("http", "ws") + "/stream"
    async with connect(url, additional_headers=bearer(A)) as socket:
        write(file, stanza("team-a", A, MINE), stanza("team-a", A_NEXT, MINE))

        async def opens(key: str) -> bool:
            return (await get(served, f"/jobs/{job_id}", key)).status_code == 200

        await wait_until(lambda: opens(A_NEXT), "the new key opens")
        assert await opens(A)
        write(file, stanza("team-a", A_NEXT, MINE))

        async def shut() -> bool:
            return not await opens(A)

        await wait_until(shut, "the old key opens nothing")
        assert await opens(A_NEXT)
        await socket.send(orjson.dumps({"op": "subscribe", "ref": "1", "job_id": job_id}).decode())
        told = orjson.loads(await asyncio.wait_for(socket.recv(), 5))
        assert told["problem"]["code"] == "unauthorized", "an open socket goes on with a key that is no more"


async def test_a_file_that_breaks_changes_nothing_and_is_told_once(
    served: Served, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(file, "[[keys]]\nname = 'team-a'\nhash = 'hunter2'\n")

    async def told() -> bool:
        assert (await get(served, "/jobs", A)).status_code == 200
        return "can't be used" in caplog.text

    await wait_until(told, "the log says it")
    assert "hunter2" not in caplog.text
    assert caplog.text.count("can't be used") == 1


def test_an_expired_key_opens_nothing(file: Path) -> None:
    now = [time.time()]
    lines = stanza("a", A, MINE) + "expires = 2030-01-01T00:00:00Z\n" + stanza("b", B, MINE) + "expires = 2030-01-01\n"
    write(file, lines)
    ring = KeyRing((), file, clock=lambda: now[0])
    assert ring.caller_with(A.encode()) is not None
    now[0] = 1893456000.0
    assert ring.caller_with(A.encode()) is None
    assert ring.caller_with(B.encode()) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keys = 1", "keys"),
        ("[[keys]]\nname = 'a'", "hash"),
        ("[[keys]]\nname = 'a:b'\nhash = 'sha256:" + ZEROS + "'", "name"),
        ("[[keys]]\nname = 'a'\nhash = 'hunter2'", "hash"),
        ("[[keys]]\nname = 'a'\nhash = 'sha256:" + ZEROS + "'\nscopes = ['root']", "scopes"),
        ("[[keys]]\nname = 'a'\nhash = 'sha256:" + ZEROS + "'\nscopes = []", "scopes"),
        ("[[keys]]\nname = 'a'\nhash = 'sha256:" + ZEROS + "'\nkey = 'hunter2'", "key"),
        ("[[keys]]\nname = 'a'\nhash = 'sha256:" + ZEROS + "'\nruns_per_day = 0", "runs_per_day"),
        ("hunter2 = [", "not TOML"),
        (("[[keys]]\nname = 'a'\nhash = 'sha256:" + ZEROS + "'\n") * 2, "same hash"),
    ],
)
def test_a_file_that_is_no_list_of_keys_is_refused_without_being_quoted(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=said) as refused:
        KeyRing((), file)
    assert "hunter2" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be read"):
        KeyRing((), tmp_path / "none.toml")
