"""A page in a real browser, headless: what it asks for, says and shows. Skips where there is no chromium on PATH."""

import contextlib
import dataclasses
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_SECONDS = 120.0  # that a busy machine may take to start it


@dataclasses.dataclass
class Seen:
    """``requests``: addresses that were asked for, ``messages``: of the console, errors among them."""

    requests: list[str] = dataclasses.field(default_factory=list)
    messages: list[str] = dataclasses.field(default_factory=list)


class Browser:
    """Speaks DevTools' protocol through two pipes."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._number, self._rest = to, back, 0, b""
        self._session: str | None = None
        self.seen = Seen()

    def attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def show(self, page: Path, *, width: int = 1280, dark: bool = False) -> None:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.resolve().as_uri())
        until = time.monotonic() + _SECONDS
        while not self.evaluate(f"document.readyState === 'complete' && location.href.endsWith({page.name!r})"):
            assert time.monotonic() < until
            time.sleep(0.1)

    def evaluate(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _note(self, event: dict[str, Any]) -> None:
        if event["method"] == "Network.requestWillBeSent":
            self.seen.requests.append(event["params"]["request"]["url"])
        elif event["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.seen.messages.append(json.dumps(event["params"]))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._back], [], [], _SECONDS)[0], "the browser does not answer"
            piece = os.read(self._back, 1 << 20)
            assert piece, "the browser has gone"
            self._rest += piece
        message, self._rest = self._rest.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A context with a browser whose profile is in ``folder``."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs chromium on PATH")
    (theirs, to), (back, theirs_back) = os.pipe(), os.pipe()
    # The shell puts the pipes where the browser looks for them.
    command = f'exec "$0" "$@" 3<&{theirs} 4>&{theirs_back}'
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-pipe",
        f"--user-data-dir={folder}",
    ]
    running = subprocess.Popen(
        ["bash", "-c", command, program, *options, "about:blank"],
        pass_fds=(theirs, theirs_back),
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    os.close(theirs_back)
    try:
        found = Browser(to, back)
        found.attach()
        yield found
    finally:
        running.terminate()
        running.wait()
        os.close(to)
        os.close(back)
