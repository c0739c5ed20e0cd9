"""The predictor's addresses on KServe's application: OpenAI chats, and nothing that KServe would infer else.

KServe registers OpenAI routes of its own only where vLLM is installed (and says nothing otherwise), so
ours are added, under `/openai/v1` as KServe's runtimes have them and under `/v1` as vLLM's has them.
Importing this module imports KServe, which parses the command line.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Coroutine
from typing import Any, TypeVar

import kserve
from kserve.model_server import app
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from unirg.serving import access, chat, meters
from unirg.serving.batching import Batcher
from unirg.serving.chat import Refused

logger = logging.getLogger("unirg.serving")
T = TypeVar("T")
CHATS = ("/openai/v1/chat/completions", "/v1/chat/completions")


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
    app.router.routes += [
        *(Route(path, ours.completions, methods=["POST"]) for path in CHATS),
        # GET /v1/models belongs to KServe's V1 protocol.
        Route("/openai/v1/models", ours.models, methods=["GET"]),
        # Before KServe's own, which infer by other protocols and unload models for anyone who asks.
        Route("/{path:path}", ours.closed, methods=["POST", "PUT", "PATCH", "DELETE"]),
    ]
    app.add_exception_handler(HTTPException, ours.misdirected)
    return model


class Routes:
    """What is answered where; `model` is the KServe model that completes."""

    def __init__(
        self, name: str, digest: str, batcher: Batcher[Any, Any, Any], token: str, model: Any
    ) -> None:
        self.name, self.digest, self.batcher, self.token, self.model = name, digest, batcher, token, model

    async def completions(self, request: Request) -> Response:
        began = time.monotonic()
        try:
            response: Response = JSONResponse(await self._answer(request))
        except Refused as refused:
            response = self._refusal(refused)
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
        return JSONResponse({"object": "list", "data": [listed], "system_fingerprint": self.digest})

    async def closed(self, request: Request) -> Response:
        return self._refusal(Refused(404, "not_served", "only chats are served, at /v1/chat/completions"))

    async def misdirected(self, request: Request, error: Exception) -> Response:
        """Where no route is, KServe's included, or not for this method."""
        if request.url.path in CHATS:
            response = self._refusal(Refused(405, "not_served", "chats are asked by POST"))
            response.headers["Allow"] = "POST"
            return response
        # Starlette takes `closed` for the address of everything, and says 405.
        return self._refusal(Refused(404, "not_served", "nothing is served at this address"))

    async def _answer(self, request: Request) -> dict[str, Any]:
        self._admit(request)
        with self.batcher.admitted():
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
        told = refused.body() | {"system_fingerprint": self.digest}
        return JSONResponse(told, refused.status, headers)


async def body(request: Request, limit: int) -> bytes:
    """The request's body; one over the limit is refused, before it is read where the header says so.

    Raises:
        Refused: 413.
    """
    too_large = Refused(413, "request_too_large", f"a request may have {limit} bytes")
    if int(request.headers.get("Content-Length", "0")) > limit:  # a number: the HTTP server sees to that
        raise too_large
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > limit:
            raise too_large
    return bytes(read)


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
        raise Refused(499, "hung_up", "the client hung up")
    return task.result()
