"""How many events a client still takes, and which of its jobs has the next turn.

A job stands in line with one event at a time, and at the end again with its next. So a job with a thousand events holds
up another one by one event, and one that was silent for long does not catch up at the others' expense.
"""

from __future__ import annotations

import asyncio


class Credit:
    """There is no limit until the first :meth:`grant`."""

    def __init__(self) -> None:
        self._left: int | None = None
        self._line: dict[asyncio.Future[None], None] = {}  # in the order of their asking
        self._loop = asyncio.get_running_loop()
        self._about_to_serve = False

    @property
    def limited(self) -> bool:
        """Whether each event costs one."""
        return self._left is not None

    def grant(self, count: int) -> None:
        """The client takes so many more."""
        self._left = (self._left or 0) + count
        self._serve_soon()

    def ask(self) -> asyncio.Future[None]:
        """Done once one event may be sent. Give it to :meth:`give_back` if none is."""
        turn: asyncio.Future[None] = self._loop.create_future()
        self._line[turn] = None
        self._serve_soon()
        return turn

    def give_back(self, turn: asyncio.Future[None]) -> None:
        """What was asked for is not needed."""
        if turn.done() and not turn.cancelled():
            self.grant(1)
        else:
            turn.cancel()
            self._line.pop(turn, None)

    def _serve_soon(self) -> None:
        """On the loop's next round: by then all who have something to send stand in line."""
        if not self._about_to_serve and self._left and self._line:
            self._about_to_serve = True
            self._loop.call_soon(self._serve)

    def _serve(self) -> None:
        self._about_to_serve = False
        while self._left and self._line:
            turn = next(iter(self._line))
            del self._line[turn]
            if not turn.done():
                self._left -= 1
                turn.set_result(None)
