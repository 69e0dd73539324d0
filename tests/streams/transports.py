"""The ways to read a job's log, behind one function each, so that one set of cases runs over all of them.

Each reads from a position to the end of the log, and gives events as they were sent; a gap is given as its last number.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import httpx
from httpx_sse import aconnect_sse
from websockets.asyncio.client import connect

from pipeserve.client import AsyncClient
from pipeserve.events import encode_body, number
from pipeserve_api.positions import Positions

Read = Callable[[str, str, int, str | None], AsyncGenerator[dict[str, Any]]]
"""From the service's URL, the job, the number of the last event that the reader has, and the types that it wants."""


class Gap(Exception):
    """Events ``first`` to ``last`` are gone."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__(f"{first} to {last}")
        self.first, self.last = first, last


def _gap(data: dict[str, Any]) -> Gap:
    return Gap(data["from"], data["to"])


async def server_sent(url: str, job_id: str, after: int, types: str | None) -> AsyncGenerator[dict[str, Any]]:
    """``GET /stream/{id}``, read by httpx-sse."""
    params = {"after": str(after)} | ({"types": types} if types else {})
    async with (
        httpx.AsyncClient(base_url=url, timeout=20, verify=False) as http,
        aconnect_sse(http, "GET", f"/stream/{job_id}", params=params) as source,
        aclosing(source.aiter_sse()) as messages,
    ):
        if source.response.status_code == 204:
            return
        async for message in messages:
            if message.event == "gap":
                raise _gap(message.json())
            if message.data:  # a terminal event that was not wanted is told by its id alone
                assert message.id == str(message.json()["seq"])
                yield message.json()


async def many_jobs(url: str, job_id: str, after: int, types: str | None) -> AsyncGenerator[dict[str, Any]]:
    """``GET /events`` with this job alone."""
    params = {"job": job_id, "after": str(Positions([job_id], [after]))} | ({"types": types} if types else {})
    async with (
        httpx.AsyncClient(base_url=url, timeout=20, verify=False) as http,
        aconnect_sse(http, "GET", "/events", params=params) as source,
        aclosing(source.aiter_sse()) as messages,
    ):
        if source.response.status_code == 204:
            return
        async for message in messages:
            if message.event == "gap":
                raise _gap(message.json())
            if message.data:
                assert message.id == str(Positions([job_id], [message.json()["seq"]]))
                yield message.json()


async def long_polls(url: str, job_id: str, after: int, types: str | None) -> AsyncGenerator[dict[str, Any]]:
    """``GET /jobs/{id}/events?wait=``, again and again."""
    async with httpx.AsyncClient(base_url=url, timeout=20, verify=False) as http:
        while True:
            params = {"after": after, "wait": 10} | ({"types": types} if types else {})
            page = (await http.get(f"/jobs/{job_id}/events", params=params)).raise_for_status().json()
            if page.get("gaps"):
                raise _gap(page["gaps"][0])
            for event in page["events"]:
                yield event
            after = page["next"]
            if page["done"]:
                return


def web_socket(url: str, job_id: str, after: int, types: str | None) -> AsyncGenerator[dict[str, Any]]:
    """The WebSocket ``/stream``."""
    return _socket(url, job_id, after, types, credit=False)


def web_socket_with_credit(url: str, job_id: str, after: int, types: str | None) -> AsyncGenerator[dict[str, Any]]:
    """The same, taking one event at a time."""
    return _socket(url, job_id, after, types, credit=True)


async def _socket(
    url: str, job_id: str, after: int, types: str | None, *, credit: bool
) -> AsyncGenerator[dict[str, Any]]:
    wanted = {"types": types.split(",")} if types else {}
    async with connect(url.replace("http", "ws") + "/stream") as socket:
        if credit:
            await socket.send('{"op": "credit", "n": 1}')
        await socket.send(json.dumps({"op": "subscribe", "ref": "r", "job_id": job_id, "after": after, **wanted}))
        async for text in socket:
            frame = json.loads(text)
            match frame["op"]:
                case "event":
                    assert "coalesced" not in frame  # the logs of these cases have no progress in them
                    yield frame["event"]
                    if credit:
                        await socket.send('{"op": "credit", "n": 1}')
                case "gap":
                    raise _gap(frame)
                case "end":
                    return
                case "error":  # the store is away, say: to be tried again, as a broken stream
                    raise ConnectionError(frame["problem"]["code"])
                case op:
                    assert op == "ack", frame


async def client_library(url: str, job_id: str, after: int, types: str | None) -> AsyncGenerator[dict[str, Any]]:
    """``pipeserve.client``, which reconnects by itself. It gives all types, and what is not wanted is left out here."""
    async with AsyncClient(url) as client, aclosing(client.job(job_id).events(after)) as events:
        async for event in events:
            if event.seq != after + 1:  # it says so in its log, and goes on
                raise Gap(after + 1, event.seq - 1)
            after = event.seq
            if types is None or event.event_type in types.split(","):
                yield json.loads(number(event.seq, encode_body(event)))


TRANSPORTS: dict[str, Read] = {
    read.__name__: read
    for read in (server_sent, many_jobs, long_polls, web_socket, web_socket_with_credit, client_library)
}
