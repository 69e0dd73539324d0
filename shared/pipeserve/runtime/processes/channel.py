"""The child's end of the socket to its parent."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

from pipeserve.runtime.processes.messages import HEADER, Kind, frame


class Channel:
    """Sending is thread-safe, waits while the parent has too much to read, and ends the process when that is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._open = True
        os.register_at_fork(after_in_child=self._leave)

    def read(self) -> bytearray | None:
        """The next frame's body; None at the end. Which kind comes next is always known here."""
        header = self._read(HEADER.size)
        if header is None:
            return None
        _, length = HEADER.unpack(header)
        return self._read(length)

    def send(self, kind: Kind, body: bytes, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Send a frame, unless ``unless()`` by the time that nobody else is sending."""
        with self._lock:
            if not self._open or unless():
                return
            try:
                for part in frame(kind, body):
                    self._socket.sendall(part)
            except OSError:
                os._exit(1)  # the parent has closed its end: it wants no more of this process

    def _read(self, length: int) -> bytearray | None:
        buffer = bytearray(length)
        view = memoryview(buffer)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                return None
            view = view[count:]
        return buffer

    def _leave(self) -> None:
        """In a process that a step has forked: it must neither talk to our parent nor hold the socket open."""
        self._lock = threading.Lock()
        self._open = False
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, self._socket.fileno())
        os.close(nothing)
