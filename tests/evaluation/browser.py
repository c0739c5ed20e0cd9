"""Headless Chromium over its DevTools pipe: what a page asks for, complains of, and how wide it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def executable() -> str:
    """Chromium's path; without one the test is skipped, but in CI it fails."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        reason = "chromium is not installed (Debian: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@dataclass
class Page:
    """One tab; `events` are the DevTools events it has sent so far."""

    send: Any
    receive: Any
    session: str = ""
    serial: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a DevTools method and wait for its result."""
        self.serial += 1
        message: dict[str, Any] = {"id": self.serial, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.send.write(json.dumps(message).encode() + b"\0")
        self.send.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self.serial:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open(self, uri: str, width: int = 1280) -> None:
        """Load a page to its end at a window width in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        self.call("Page.navigate", url=uri)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression)["result"].get("value")

    def requested(self) -> list[str]:
        """Every URL that the page asked for, its own included."""
        sent = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [str(params["request"]["url"]) for params in sent]

    def complaints(self) -> list[str]:
        """What the console and the browser's log say of the page."""
        methods = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event) for event in self.events if event["method"] in methods]

    def _next(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self.receive.read(1)) != b"\0":
            assert byte, "chromium ended"
            data += byte
        message: dict[str, Any] = json.loads(data)
        if "method" in message:
            self.events.append(message)
        return message


@contextmanager
def page(profile: Path) -> Iterator[Page]:
    """A tab of a Chromium of its own, gone at the end."""
    to_child, send = os.pipe()
    receive, from_child = os.pipe()

    def pipes() -> None:  # Chromium reads commands from descriptor 3 and answers on 4
        os.dup2(to_child, 13)
        os.dup2(from_child, 14)
        os.dup2(13, 3)
        os.dup2(14, 4)

    process = subprocess.Popen(
        [executable(), *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
        preexec_fn=pipes,
        pass_fds=(3, 4),
        stderr=subprocess.DEVNULL,
    )
    os.close(to_child)
    os.close(from_child)
    try:
        with os.fdopen(send, "wb") as writer, os.fdopen(receive, "rb") as reader:
            tab = Page(writer, reader)
            target = tab.call("Target.createTarget", url="about:blank")["targetId"]
            tab.session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Log", "Runtime"):
                tab.call(f"{domain}.enable")
            yield tab
    finally:
        process.kill()
        process.wait(20)
