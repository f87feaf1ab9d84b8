"""A headless Chromium for tests, driven through its DevTools protocol over a pipe.

No driver program and no Python package is needed: `--remote-debugging-pipe` speaks JSON, each
message ended by a zero byte, on file descriptors 3 and 4.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import pathlib
import select
import signal
import tempfile
import time
from typing import Any, Self

from debian_tools import need

_SECONDS = 90.0  # for one answer: loaded CI machines are slow


class BrowserError(Exception):
    """The browser answered with an error, or not at all."""


class Browser:
    """One browser with one page. Use as a context manager."""

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        program = need("chromium-headless-shell", package="chromium-headless-shell")
        self._home = tempfile.TemporaryDirectory(
            prefix="pykvm-browser-", ignore_cleanup_errors=True
        )
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        arguments = [
            program, "--remote-debugging-pipe",
            "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={self._home.name}",
            f"--window-size={width},{height}", "about:blank",
        ]  # fmt: skip
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (to_read, to_write)]
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)
        ]
        actions += [
            (os.POSIX_SPAWN_DUP2, fd, place) for fd, place in zip(ends, (3, 4), strict=True)
        ]
        self._pid = os.posix_spawn(
            program, arguments, os.environ, file_actions=actions, setpgroup=0
        )
        for fd in ends:
            os.close(fd)
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.errors: list[str] = []
        """Exceptions, console errors and requests beyond the page itself."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; raises `BrowserError`."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self._from, 1 << 16) if ready else b""
            if not data:
                raise BrowserError("the browser does not answer, or has ended")
            self._buffer += data
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details)))
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif message.get("method") == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "about:", "data:", "blob:")):
                self.errors.append(f"asks the network for {url}")
        return message

    def open(self, path: pathlib.Path) -> None:
        """Loads a file, and waits until it is the page that is there."""
        self.call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")
        url = path.resolve().as_uri()
        self.call("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise BrowserError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Waits until an expression is true, and returns it."""
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            if value := self.run(condition):
                return value
            time.sleep(0.02)
        raise BrowserError(f"{condition} did not become true; errors: {self.errors}")

    def click(self, x: float, y: float) -> None:
        """A click of the mouse at a place of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click_on(self, selector: str) -> None:
        """A click on the middle of the first element that a CSS selector finds, as soon as it does.

        A page may be drawing its rows anew when this asks.
        """
        x, y = self.wait(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "if (!e) return null;"
            "e.scrollIntoView({block: 'nearest'}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        self.click(x, y)

    def resize(self, width: int, height: int) -> None:
        """Another size of the window."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def scheme(self, name: str) -> None:
        """The user's colour scheme: "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: pathlib.Path) -> None:
        """A PNG of the window."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """Ends the browser."""
        os.killpg(self._pid, signal.SIGKILL)  # its helper processes, too
        os.waitpid(self._pid, 0)
        os.close(self._to)
        os.close(self._from)
        self._home.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
