"""Server-sent events: bytes in pieces of any size in, whole messages out. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

_RETRY_DIGITS = 9
"""Of milliseconds, 11 days: whoever says more means no time, and it might be more than a float can hold."""


@dataclass(frozen=True, slots=True)
class Message:
    """One dispatched message. ``event`` is ``"message"`` where the stream names none."""

    event: str
    data: str
    id: str | None


class SseParser:
    """Parses one connection's stream as the HTML standard says. ``retry`` is the server's last word, in seconds."""

    def __init__(self) -> None:
        self.retry: float | None = None
        self._buffer = b""
        self._first = True
        self._event = ""
        self._data: list[str] = []
        self._id: str | None = None

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that ``chunk`` completes; what is left over waits for the next one."""
        buffer = self._buffer + chunk
        # A carriage return at the end may be half of a line's end: it waits for the byte that tells.
        held = b"\r" if buffer.endswith(b"\r") else b""
        text = buffer[: len(buffer) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._buffer = rest + held
        messages = [self._line(line) for line in lines]
        return [message for message in messages if message is not None]

    def _line(self, raw: bytes) -> Message | None:
        if self._first:
            self._first = False
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw:
            return self._dispatch()
        name, _, value = raw.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit() and len(value) <= _RETRY_DIGITS:
                self.retry = int(value) / 1000
            case _:  # a comment (no name) or a field of a later standard
                pass
        return None

    def _dispatch(self) -> Message | None:
        message = Message(self._event or "message", "\n".join(self._data), self._id) if self._data else None
        self._event, self._data = "", []
        return message
