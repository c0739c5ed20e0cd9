"""The copy-prior baseline as an endpoint: it answers with what it is told, without a model.

Its prompt (the recipe `copy_prior`) is the text of the patient's previous report, so scoring with it goes the
same way as with any model. A study without a prior gets an empty answer, which scoring counts as a failure.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from unirg.scoring.client import DIGEST
from unirg.storage import sha256

VERSION = 1
MODEL = "copy-prior"
MAX_BODY = 2**20
"""Bytes of a request; a report has a few thousand."""


class CopyPrior:
    """An `unirg.scoring.archive.Endpoint` that is there while it is connected to, on this machine only."""

    model_name = MODEL
    model_digest = sha256(f"{MODEL}/{VERSION}".encode())
    basis = "the program's own version"
    restarts: ClassVar[bool] = False
    """Nothing that it is asked can kill it."""

    @contextmanager
    def connect(self) -> Iterator[str]:
        with _Server(("127.0.0.1", 0), _Handler) as server:
            thread = threading.Thread(target=server.serve_forever, name=MODEL, daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}/v1"
            finally:
                server.shutdown()
                thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A connection that a client keeps open must not hold up the end.
    block_on_close = False
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two writes, and the second would wait for the first one's acknowledgement.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            self.close_connection = True
            return self._answer(413, {"error": {"code": "too_large"}})
        try:
            text = _told(json.loads(self.rfile.read(int(length))))
        except (ValueError, LookupError, TypeError, AttributeError):
            return self._answer(400, {"error": {"code": "invalid_request"}})
        words = len(text.split())
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": words, "completion_tokens": words, "total_tokens": 2 * words}
        self._answer(200, {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header(DIGEST, CopyPrior.model_digest)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a request holds a report."""


def _told(request: dict[str, Any]) -> str:
    """The text of the user's last message."""
    content = [message["content"] for message in request["messages"] if message["role"] == "user"][-1]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")
