"""One POST to a receiver that is kind, slow, large, redirecting, private or away."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest
from tests.webhooks.receiver import Receiver, answer, receiving

from pipeserve.webhooks import Receivers
from pipeserve.webhooks.connections import resolve
from pipeserve.webhooks.receivers import Address
from pipeserve.webhooks.sender import MAX_ANSWER_BYTES, Answer, Sender

LOOPBACK = Receivers.parse("127.0.0.0/8")
CERTIFICATE = Path(__file__).parent / "hooks_example.pem"  # of hooks.example, signed by itself, until 2126


class Names:
    """A name server: each look-up takes the next answer, and the last for good."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = [[ip_address(address) for address in addresses] for addresses in answers]
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append(host)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


async def post(
    url: str, *, receivers: Receivers = LOOPBACK, timeout: float = 5.0, names: Names | None = None
) -> Answer:
    async with Sender(receivers, timeout, user_agent="pipeserve/1.2.3", look_up=names or resolve) as sender:
        return await sender.post(url, {"webhook-id": "a:1"}, b'{"a":1}')


async def test_a_message_arrives_whole() -> None:
    async with receiving() as receiver:
        result = await post(receiver.url)
    (request,) = receiver.requests
    assert (result.status_code, result.error) == (204, None)
    assert request.line == "POST /hooks?key=a HTTP/1.1"
    assert request.body == b'{"a":1}'
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == "pipeserve/1.2.3"
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert request.headers["webhook-id"] == "a:1"


async def test_messages_to_one_receiver_share_a_connection() -> None:
    async with receiving() as receiver, Sender(LOOPBACK, 5.0) as sender:
        receiver.usual = answer(200, body=b"thank you")
        for _ in range(3):
            await sender.post(receiver.url, {}, b"{}")
    assert receiver.connections == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_a_failed_try_and_is_not_followed(status: int) -> None:
    async with receiving() as elsewhere, receiving() as receiver:
        receiver.usual = answer(status, f"Location: {elsewhere.url}")
        result = await post(receiver.url)
    assert result.status_code == status
    assert "redirects are not followed" in str(result.error)
    assert not elsewhere.requests


async def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as proxy, receiving() as receiver:
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(variable, proxy.url)
        await post(receiver.url)
    assert (len(proxy.requests), len(receiver.requests)) == (0, 1)


# ---- addresses


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["::1"]])
async def test_a_name_with_a_private_address_is_refused_after_the_look_up(addresses: list[str]) -> None:
    async with receiving() as receiver:
        url = f"http://hooks.example:{receiver.port}/"
        result = await post(url, receivers=Receivers.parse(""), names=Names(addresses))
    assert result.status_code is None
    assert "private address" in str(result.error)
    assert "127.0.0.1" not in str(result.error), "who submits a job learns nothing of the network"
    assert receiver.connections == 0


async def test_the_address_that_was_checked_is_the_one_that_is_connected_to() -> None:
    # A name server that answers with a private address the second time it is asked: it is not asked again.
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    async with receiving() as receiver:
        result = await post(
            f"http://hooks.example:{receiver.port}/", receivers=Receivers.parse("127.0.0.1"), names=names
        )
    assert result.status_code == 204
    assert names.asked == ["hooks.example"]
    assert receiver.requests[0].headers["host"] == f"hooks.example:{receiver.port}"


async def test_every_new_connection_is_checked() -> None:
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    async with receiving() as receiver:
        receiver.usual = answer(204, "Connection: close")
        async with Sender(Receivers.parse("127.0.0.1"), 5.0, look_up=names) as sender:
            first = await sender.post(f"http://hooks.example:{receiver.port}/", {}, b"{}")
            second = await sender.post(f"http://hooks.example:{receiver.port}/", {}, b"{}")
    assert (first.status_code, second.status_code) == (204, None)
    assert receiver.connections == 1


async def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    async with receiving() as receiver:
        url = f"http://hooks.example:{receiver.port}/"
        result = await post(url, names=Names(["127.0.0.9", "127.0.0.1"]))
    assert result.status_code == 204


async def test_an_address_in_the_url_is_checked_too() -> None:
    async with receiving() as receiver:
        result = await post(receiver.url, receivers=Receivers.parse("10.0.0.0/8"))
    assert "private address" in str(result.error)
    assert receiver.connections == 0


async def test_tls_goes_by_the_name_and_needs_a_certificate_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(CERTIFICATE)
    names = Names(["127.0.0.1"])
    async with receiving(tls=tls) as receiver:
        stranger = await post(f"https://hooks.example:{receiver.port}/", names=names)
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        known = await post(f"https://hooks.example:{receiver.port}/", names=names)
        another = await post(f"https://other.example:{receiver.port}/", names=names)
    assert "CERTIFICATE_VERIFY_FAILED" in str(stranger.error)
    assert known.status_code == 204
    assert "CERTIFICATE_VERIFY_FAILED" in str(another.error)
    assert len(receiver.requests) == 1


# ---- receivers that don't answer


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = await post(f"http://127.0.0.1:{port}/")
    assert result.status_code is None
    assert "no connection" in str(result.error)


async def test_the_name_is_unknown() -> None:
    async def unknown(host: str, port: int) -> Sequence[Address]:
        raise socket.gaierror(-2, "Name or service not known")

    async with Sender(LOOPBACK, 5.0, look_up=unknown) as sender:
        result = await sender.post("http://hooks.example/", {}, b"{}")
    assert result.error == "no connection: hooks.example is unknown"


async def test_the_connection_breaks() -> None:
    async def hang_up(writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with receiving(Receiver(usual=hang_up)) as receiver:
        result = await post(receiver.url)
    assert result.status_code is None
    assert "the connection broke" in str(result.error)


async def test_an_answer_that_is_no_http_is_a_failed_try() -> None:
    async with receiving(Receiver(usual=b"220 mail.example ESMTP\r\n\r\n")) as receiver:
        result = await post(receiver.url)
    assert result.status_code is None
    assert "the connection broke" in str(result.error)


async def test_of_what_a_receiver_sends_in_place_of_http_little_gets_into_the_record() -> None:
    async with receiving(Receiver(usual=b"X" * 90_000 + b"\r\n\r\n")) as receiver:
        result = await post(receiver.url)
    assert len(str(result.error)) <= 200


async def test_an_ipv6_address_keeps_its_brackets_in_the_host_header() -> None:
    async with receiving() as receiver:
        url = f"http://[2001:4860:4860::8888]:{receiver.port}/"
        await post(url, names=Names(["127.0.0.1"]))
    assert receiver.requests[0].headers["host"] == f"[2001:4860:4860::8888]:{receiver.port}"


async def test_a_url_that_can_not_be_used_is_a_failed_try() -> None:
    for url in ("ftp://127.0.0.1/", "http://[", "http://a..b/"):
        assert (await post(url)).error


async def test_a_receiver_that_sends_its_headers_drop_by_drop_runs_out_of_time() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not writer.is_closing():
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with receiving(Receiver(usual=drip)) as receiver:
        result = await post(receiver.url, timeout=0.2)
    assert result.status_code is None
    assert result.error == "no answer within 0.2 s"


async def test_a_body_that_never_ends_changes_nothing_of_an_answer_that_has_come() -> None:
    left = asyncio.Event()

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"1\r\na\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        finally:
            left.set()

    async with receiving(Receiver(usual=drip)) as receiver:
        result = await post(receiver.url, timeout=0.3)
        assert (result.status_code, result.error) == (200, None)
        async with asyncio.timeout(5):
            await left.wait()


async def test_of_a_huge_answer_only_the_beginning_is_read() -> None:
    written = 0
    left = asyncio.Event()

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65_536)
                await writer.drain()
                written += 65_536
        finally:
            left.set()

    async with receiving(Receiver(usual=flood)) as receiver:
        result = await post(receiver.url)
        assert (result.status_code, result.error) == (200, None)
        async with asyncio.timeout(5):
            await left.wait()
    # What the sockets' buffers hold comes on top: some megabytes at most.
    assert MAX_ANSWER_BYTES < written < 100_000_000


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Retry-After: 120", 120.0),
        ("Retry-After: Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Retry-After: soon", None),
        ("Retry-After: 99999999999 Jan AM 12:00 0001", None),
        ("Retry-After: -5", None),
        ("X-Other: 1", None),
    ],
)
async def test_what_a_receiver_asks_for_is_read(header: str, seconds: float | None) -> None:
    async with receiving(Receiver(usual=answer(503, header))) as receiver:
        result = await post(receiver.url)
    assert result.retry_after == seconds
    assert result.error == "the receiver answered 503"
