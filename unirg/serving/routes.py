"""The predictor's addresses on KServe's application: OpenAI chats, health, metrics, and nothing else.

KServe registers OpenAI routes of its own only where vLLM is installed (and says nothing otherwise), so
ours are added, under `/openai/v1` as KServe's runtimes have them and under `/v1` as vLLM's has them. They
come before KServe's own, which stay out of reach: those infer by other protocols, unload models for anyone
who asks, and call the server ready while it shuts down.
Importing this module imports KServe, which parses the command line.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import kserve
from kserve.model_server import app
from kserve.protocol.rest.server import metrics_handler
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, request_response

from unirg.serving import access, chat, meters
from unirg.serving.batching import Batcher, shutting_down
from unirg.serving.chat import Refused

logger = logging.getLogger("unirg.serving")
T = TypeVar("T")
CHATS = ("/openai/v1/chat/completions", "/v1/chat/completions")
MODELS = ("/openai/v1/models", "/v1/models")
READY, LIVE = "/v2/health/ready", ("/", "/v2/health/live")
BODY_S = 60.0
"""How long a request's body may take to arrive: a place is held for it."""


def build_model(name: str, digest: str, batcher: Batcher[Any, Any, Any], token: str = "") -> Any:
    """A `kserve.Model` that answers chats, with the OpenAI routes to it on KServe's application.

    Args:
        token: what a request must show as its bearer; empty: nothing. Health and metrics never ask for it.
    """

    class Predictor(kserve.Model):
        async def predict(self, payload: chat.ChatRequest, *args: Any, **kwargs: Any) -> Any:
            return await batcher.submit(payload)

    model = Predictor(name)
    model.ready = True  # it is built on a policy that is loaded and warm
    meters.MODEL.labels(name, digest).set(1)
    meters.QUEUE.set_function(lambda: batcher.waiting)
    ours = Routes(name, digest, batcher, token, model)
    app.router.routes[:] = [
        *(Route(path, ours.completions, methods=["POST"]) for path in CHATS),
        *(Route(path, ours.models) for path in MODELS),
        *(Route(path, ours.ready) for path in (READY, f"/v1/models/{name}", f"/v2/models/{name}/ready")),
        *(Route(path, ours.live) for path in LIVE),
        Route("/metrics", metrics_handler),
        Mount("/", request_response(ours.closed)),
    ]
    return model


class Routes:
    """What is answered where; `model` is the KServe model that completes."""

    def __init__(
        self, name: str, digest: str, batcher: Batcher[Any, Any, Any], token: str, model: Any
    ) -> None:
        self.name, self.digest, self.batcher, self.token, self.model = name, digest, batcher, token, model
        self.room = Room(chat.MAX_BODIES)

    async def completions(self, request: Request) -> Response:
        began = time.monotonic()
        try:
            response: Response = JSONResponse(await self._answer(request))
        except Refused as refused:
            response = self._refusal(refused)
        except asyncio.CancelledError:  # the server ends without finishing: the client shall hear of it
            response = self._refusal(shutting_down())
        except Exception as error:  # its message may quote the request: neither logged nor sent
            where = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("%s at %s:%s", type(error).__name__, where.filename, where.lineno)
            response = self._refusal(
                Refused(500, "internal_error", "the completion failed; the server goes on")
            )
        meters.REQUESTS.labels(str(response.status_code)).inc()
        meters.LATENCY.observe(time.monotonic() - began)
        return response

    async def models(self, request: Request) -> Response:
        try:
            self._admit(request)
        except Refused as refused:
            return self._refusal(refused)
        listed = {"id": self.name, "object": "model", "created": 0, "owned_by": "unirg"}
        # `models` is KServe's V1 protocol, which shares the address.
        return self._told({"object": "list", "data": [listed], "models": [self.name]})

    async def ready(self, request: Request) -> Response:
        """Whether new chats are accepted; from SIGTERM on they are not."""
        return self._told({"name": self.name, "ready": self.model.ready}, 200 if self.model.ready else 503)

    async def live(self, request: Request) -> Response:
        return self._told({"status": "alive", "live": True})

    async def closed(self, request: Request) -> Response:
        if request.url.path not in CHATS:
            return self._refusal(Refused(404, "not_served", "nothing is served at this address"))
        response = self._refusal(Refused(405, "not_served", "chats are asked by POST"))
        response.headers["Allow"] = "POST"
        return response

    async def _answer(self, request: Request) -> dict[str, Any]:
        self._admit(request)
        with self.batcher.admitted(), self.room.taken(declared(request)):
            asked = chat.parse(await body(request, chat.MAX_BODY))
            if asked.model != self.name:
                raise Refused(404, "model_not_found", "no such model is served here")
            done, _ = await unless_gone(request, self.model(asked))
        meters.TOKENS.labels("prompt").inc(done.prompt_tokens)
        meters.TOKENS.labels("completion").inc(done.completion_tokens)
        return chat.completion(
            self.name, self.digest, done.text, done.finish_reason, done.prompt_tokens, done.completion_tokens
        )

    def _admit(self, request: Request) -> None:
        if not access.allowed(request.headers.get("Authorization"), self.token):
            raise Refused(401, "unauthorized", "send the endpoint's token: Authorization: Bearer ...")

    def _refusal(self, refused: Refused) -> Response:
        headers = {} if refused.retry_after_s is None else {"Retry-After": str(refused.retry_after_s)}
        if refused.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="unirg"'
        return self._told(refused.body(), refused.status, headers)

    def _told(
        self, content: dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        return JSONResponse(content | {"system_fingerprint": self.digest}, status, headers)


class Room:
    """Bytes of request bodies that may be in hand together, so that memory has a bound."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Raises: Refused: 429, the bodies in hand leave no room for one of this size."""
        if size > self.left:
            raise Refused(429, "overloaded", "too many bytes are in hand: try again", retry_after_s=1)
        self.left -= size
        try:
            yield
        finally:
            self.left += size


def declared(request: Request) -> int:
    """Bytes that a request's body may take: what its header says, or the most, where it comes in chunks.

    Raises:
        Refused: 413, before the body is read.
    """
    size = int(request.headers.get("Content-Length", chat.MAX_BODY))  # a number: the HTTP server sees to that
    if size > chat.MAX_BODY:
        raise too_large(chat.MAX_BODY)
    return size


async def body(request: Request, limit: int, seconds: float = BODY_S) -> bytes:
    """The request's body, whatever its header says.

    Raises:
        Refused: 413, it goes over the limit; 408, it takes too long; 499, the client hangs up in it.
    """
    read = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                read += chunk
                if len(read) > limit:
                    raise too_large(limit)
    except TimeoutError:
        raise Refused(408, "too_slow", f"a request must arrive within {seconds:g} s") from None
    except ClientDisconnect:
        raise hung_up() from None
    return bytes(read)


def too_large(limit: int) -> Refused:
    return Refused(413, "request_too_large", f"a request may have {limit} bytes")


def hung_up() -> Refused:
    """Nobody reads this; it is counted."""
    return Refused(499, "hung_up", "the client hung up")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is given up when the client hangs up.

    Raises:
        Refused: it did; nobody reads this.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    if not task.done():
        task.cancel()
        raise hung_up()
    return task.result()
