"""Chromium without a window, driven through its DevTools protocol over two pipes: no package, no network port."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page of a browser; use it as a context manager.

    Attributes:
        problems: Everything that went wrong on the page: exceptions, console errors, refused and failed requests.
    """

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM
        self.problems: list[str] = []
        self._number, self._buffer = 0, b""
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        pipes = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions"
        flags += " --disable-background-networking --remote-debugging-pipe"
        self._process = subprocess.Popen(
            ["bash", "-c", pipes, CHROMIUM, *flags.split(), f"--user-data-dir={profile}"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session: str | None = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": parameters, **session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path: Path) -> float:
        """Open a file and wait until all of it is loaded and drawn; returns the seconds that took."""
        return self.open_address(path.absolute().as_uri())

    def open_address(self, url: str) -> float:
        """Like `open`, for an address."""
        begun = time.monotonic()
        self("Page.navigate", url=url)
        self.evaluate(
            "new Promise(done => { const soon = () => requestAnimationFrame(() => setTimeout(done));"
            " document.readyState === 'complete' ? soon() : addEventListener('load', soon); })"
        )
        return time.monotonic() - begun

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of its promise."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, x: float, y: float) -> None:
        """Click with the left mouse button."""
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click(self, selector: str, *, at: tuple[float, float] = (0.5, 0.5)) -> None:
        """Scroll to an element and click it; `at` is where, as shares of its width and height."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return [b.x, b.y, b.width, b.height]; })()"
        )
        self.press(box[0] + at[0] * box[2], box[1] + at[1] * box[3])

    def type(self, text: str) -> None:
        """Type text into the element that has the focus."""
        self("Input.insertText", text=text)

    def look(self, *, width: int, height: int, dark: bool = False) -> None:
        """Set the size of the window, in CSS pixels, and the color scheme."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """Save what the window shows as a PNG file."""
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            piece = os.read(self._read, 1 << 20)
            assert piece, "the browser ended"
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(line)
        method, found = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(found["exceptionDetails"].get("exception", found["exceptionDetails"])))
        elif (method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning")) or (
            method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning")
        ):
            self.problems.append(str(found))
        elif method == "Network.loadingFailed":
            self.problems.append(found["errorText"])
        return message
