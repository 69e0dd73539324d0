"""Chromium, driven through Playwright.

Playwright's objects belong to one event loop, and each test has its own. So the browser has a thread with a loop for
as long as the session lasts, and what a test asks of it is done there.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from playwright.async_api import Browser as Chromium
from playwright.async_api import Page as Tab
from playwright.async_api import Request, async_playwright
from tests.programs import needed

T = TypeVar("T")
PATIENCE = 20_000.0
"""Milliseconds that a condition in a page has to come true."""


class Page:
    """One tab."""

    def __init__(self, tab: Tab, browser: Browser) -> None:
        self._tab = tab
        self._browser = browser
        self._requests: list[Request] = []

    def listen(self) -> None:
        """In the browser's thread: note what the page asks for from now on."""
        # Playwright can't take a built-in method such as "append".
        self._tab.on("request", lambda request: self._requests.append(request))  # noqa: PLW0108

    async def run(self, script: str, argument: Any = None) -> Any:
        """What the script (an expression, or a function of ``argument``) gives."""
        return await self._browser.do(self._tab.evaluate(script, argument))

    async def requests(self) -> list[dict[str, str]]:
        """The headers of all that the page has asked for since it was opened."""
        return [await self._browser.do(request.all_headers()) for request in list(self._requests)]

    async def until(self, condition: str, argument: Any = None) -> None:
        """Return once the condition (a function of ``argument``) is true in the page."""
        await self._browser.do(self._tab.wait_for_function(condition, arg=argument, timeout=PATIENCE, polling=20))


class Browser:
    """A running Chromium."""

    def __init__(self, loop: asyncio.AbstractEventLoop, chromium: Chromium) -> None:
        self._loop = loop
        self._chromium = chromium

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Await this in the browser's thread."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    @contextlib.asynccontextmanager
    async def page(self, url: str) -> AsyncIterator[Page]:
        """A tab with this page, with cookies and connections of its own."""
        context = await self.do(self._chromium.new_context())

        async def opened() -> Page:
            tab = await context.new_page()
            answer = await tab.goto(url)
            assert answer is not None
            assert answer.ok, f"{url}: {answer.status}"
            page = Page(tab, self)
            page.listen()
            return page

        try:
            yield await self.do(opened())
        finally:
            await self.do(context.close())


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    path = needed("chromium", "apt-get install chromium")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="browser")
    thread.start()
    try:
        driver = asyncio.run_coroutine_threadsafe(async_playwright().start(), loop).result(60)
        try:
            # Root may not use Chromium's sandbox, and a container's /dev/shm is too small for it.
            starting = driver.chromium.launch(
                executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
            )
            browser = asyncio.run_coroutine_threadsafe(starting, loop).result(60)
            yield Browser(loop, browser)
            asyncio.run_coroutine_threadsafe(browser.close(), loop).result(60)
        finally:
            asyncio.run_coroutine_threadsafe(driver.stop(), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
