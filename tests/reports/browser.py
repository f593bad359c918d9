"""A headless Chromium driven over its debugging pipe, with nothing but the standard library."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-pipe", "--force-color-profile=srgb",
)  # fmt: skip

# Chromium reads its commands from descriptor 3 and answers on 4.
_LAUNCH = """
import os, sys
for place, end in enumerate(sys.argv[1:3], 3):
    os.dup2(int(end), place)
os.execv(sys.argv[3], sys.argv[3:])
"""


_KEY_CODES = {
    "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9,
}  # fmt: skip


class BrowserError(RuntimeError):
    """The browser, or a script in the page, reported an error."""


class Browser:
    """One page. `errors` collects uncaught exceptions, console errors and violations of the policy."""

    def __init__(self, profile: Path, timeout_s: float = 120.0) -> None:
        self._timeout_s = timeout_s
        self._next_id = 0
        self._buffer = b""
        self._session: str | None = None
        self.errors: list[str] = []
        self._requests: dict[str, str] = {}
        self._start(profile)

    def _start(self, profile: Path) -> None:
        commands_read, self._commands = os.pipe()
        self._answers, answers_write = os.pipe()
        command = [CHROMIUM or "chromium", *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands_read, answers_write)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, *map(str, ends), *command],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (commands_read, answers_write, *ends):
            os.close(end)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrowserError, OSError):
            self._session = None
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    @property
    def requests(self) -> list[str]:
        """Addresses that were asked for; what the page's policy stopped is not among them."""
        return list(self._requests.values())

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._next_id += 1
        message = {"id": self._next_id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._send(message)
        for answer in self._messages():
            if answer.get("id") == self._next_id:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)
        raise BrowserError(f"{method}: the browser ended")

    def _send(self, message: dict[str, Any]) -> None:
        data = memoryview(json.dumps(message).encode() + b"\0")
        while data:
            data = data[os.write(self._commands, data) :]

    def _messages(self) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + self._timeout_s
        while True:
            while b"\0" in self._buffer:
                message, _, self._buffer = self._buffer.partition(b"\0")
                yield json.loads(message)
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise BrowserError(f"no answer within {self._timeout_s} s")
            data = os.read(self._answers, 1 << 20)
            if not data:
                return
            self._buffer += data

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            # A full-size picture that is not there is no error: the page shows the preview instead.
            case "Log.entryAdded" if params["entry"]["level"] == "error" and params["entry"]["source"] != "network":
                self.errors.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled" if params["type"] == "error":
                self.errors.append(str(params["args"]))
            case "Network.requestWillBeSent" if not params["request"]["url"].startswith("data:"):
                self._requests[params["requestId"]] = params["request"]["url"]
            case "Network.loadingFailed" if params.get("blockedReason"):
                self._requests.pop(params["requestId"], None)

    def open(
        self,
        path: Path,
        *,
        width: int = 1440,
        height: int = 900,
        dark: bool = False,
        phone: bool = False,
        scale: float = 1.0,
    ) -> None:
        self.errors.clear()
        self._requests.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)
        try:
            self._navigate(path.as_uri())
        except BrowserError:
            # A new browser on a machine without a free core sometimes loses its first navigation.
            self._navigate(path.as_uri())

    def _navigate(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(str(answer["exceptionDetails"].get("exception", answer)))
        return answer["result"].get("value")

    def wait_for(self, condition: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                raise BrowserError(f"never became true: {condition}")
            time.sleep(0.03)

    def press(self, key: str) -> None:
        """A key by its name, or the one of a character."""
        code = _KEY_CODES[key] if key in _KEY_CODES else ord(key.upper())
        text = {"text": "\r" if key == "Enter" else key} if key == "Enter" or len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def downloads_to(self, folder: Path) -> None:
        """Files that pages save land there."""
        self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def choose_file(self, selector: str, path: Path) -> None:
        """Put a file into a file input, as a person does with the dialog."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
