"""A predictor of the test's own, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.serving.requests import chat
from unirg.serving.endpoint import LocalEndpoint


def ask(base_url: str, authorization: str = "", **parameters: Any) -> httpx.Response:
    headers = {"Authorization": authorization} if authorization else {}
    return httpx.post(f"{base_url}/chat/completions", json=chat(**parameters), headers=headers, timeout=60)


@contextmanager
def started(
    endpoint: LocalEndpoint, folder: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server as (process, base URL); its log is folder/log."""
    ready = folder / "url"
    command = [sys.executable, "-m", "unirg.serving.predictor", *endpoint.arguments(), *options]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--ready-file", str(ready)],
            stdout=log,
            stderr=log,
            env=os.environ | dict(environment or {}),
        )
    try:
        until = time.monotonic() + 120
        while not ready.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        yield process, ready.read_text()
    finally:
        process.kill()
        process.wait()
