"""A KServe model server for one checkpoint, on transformers, speaking OpenAI chat completions.

    python -m unirg.serving.predictor --model-dir DIR --model-name NAME --model-digest D --ready-file PATH

KServe registers OpenAI routes of its own only where vLLM is installed (and says nothing otherwise), so
ours are added to its application, under `/openai/v1` as KServe's runtimes have them and under `/v1` as
vLLM's has them. The socket opens when the policy is loaded and warm: whoever can connect is answered.
SIGTERM closes it, and what was accepted is finished. Nothing of a request is logged, and there is no
access log.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import traceback
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unirg import processes
from unirg.errors import UserError

if TYPE_CHECKING:
    from starlette.requests import Request

    from unirg.serving.batching import Batcher

logger = logging.getLogger("unirg.serving")
T = TypeVar("T")
PREFIXES = ("/openai/v1", "/v1")
DIGEST_HEADER = "X-Model-Digest"
DRAIN_S = 30
MAX_WAITING = 256


def build_model(name: str, digest: str, batcher: Batcher[Any, Any, Any]) -> Any:
    """A `kserve.Model` that answers chats, with the OpenAI routes to it on KServe's application."""
    import kserve
    from kserve.model_server import app
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    from unirg.serving import chat

    class Predictor(kserve.Model):
        async def predict(self, payload: chat.ChatRequest, *args: Any, **kwargs: Any) -> Any:
            return await batcher.submit(payload)

    model = Predictor(name)
    model.ready = True  # it is built on a policy that is loaded and warm

    def respond(content: dict[str, Any], status: int = 200, **headers: str) -> Response:
        return JSONResponse(content, status, headers | {DIGEST_HEADER: digest})

    async def answer(request: Request) -> dict[str, Any]:
        with batcher.admitted():
            asked = chat.parse(await _body(request, chat.MAX_BODY))
            if asked.model != name:
                raise chat.Refused(404, "model_not_found", "no such model is served here")
            done, _ = await _unless_gone(request, model(asked))
        return chat.completion(
            name, digest, done.text, done.finish_reason, done.prompt_tokens, done.completion_tokens
        )

    async def completions(request: Request) -> Response:
        try:
            return respond(await answer(request))
        except chat.Refused as refused:
            wait = {} if refused.retry_after_s is None else {"Retry-After": str(refused.retry_after_s)}
            return respond(refused.body(), refused.status, **wait)
        except Exception as error:  # its message may quote the request: neither logged nor sent
            where = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("%s at %s:%s", type(error).__name__, where.filename, where.lineno)
            failed = chat.Refused(500, "internal_error", "the completion failed; the server goes on")
            return respond(failed.body(), failed.status)

    async def models(request: Request) -> Response:
        listed = {"id": name, "object": "model", "created": 0, "owned_by": "unirg"}
        return respond({"object": "list", "data": [listed]})

    async def closed(request: Request) -> Response:
        refused = chat.Refused(404, "not_served", "only chats are served, at /openai/v1/chat/completions")
        return respond(refused.body(), refused.status)

    app.router.routes += [
        *(Route(f"{prefix}/chat/completions", completions, methods=["POST"]) for prefix in PREFIXES),
        # GET /v1/models belongs to KServe's V1 protocol.
        Route("/openai/v1/models", models, methods=["GET"]),
        # Before KServe's own, which infer by other protocols and unload models for anyone who asks.
        Route("/{path:path}", closed, methods=["POST", "PUT", "PATCH", "DELETE"]),
    ]
    return model


async def _body(request: Request, limit: int) -> bytes:
    from unirg.serving.chat import Refused

    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > limit:
            raise Refused(413, "request_too_large", f"a request may have {limit} bytes")
    return bytes(read)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is given up when the client hangs up.

    Raises:
        Refused: it did; nobody reads this.
    """
    from unirg.serving.chat import Refused

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    if not task.done():
        task.cancel()
        raise Refused(499, "hung_up", "the client hung up")
    return task.result()


def build_server(host: str, port: int, batcher: Batcher[Any, Any, Any], ready_file: Path | None) -> Any:
    """A `kserve.ModelServer` that listens on one address, runs the batcher and says when it is ready."""
    import kserve

    class Server(kserve.ModelServer):
        async def _serve(self) -> None:
            # ModelServer has no parameter for the address: without this it listens on every one.
            self._rest_server.config.host = host
            tasks = [asyncio.create_task(batcher.run()), asyncio.create_task(self._announce())]
            try:
                await super()._serve()
            finally:
                for task in tasks:
                    task.cancel()

        async def _announce(self) -> None:
            listening = self._rest_server._server
            while not listening.started:
                await asyncio.sleep(0.01)
            actual = listening.servers[0].sockets[0].getsockname()[1]
            url = f"http://{host}:{actual}{PREFIXES[0]}"
            logger.info("ready at %s", url)
            if ready_file:
                aside = ready_file.with_name(ready_file.name + ".part")
                aside.write_text(url)
                aside.replace(ready_file)

    return Server(http_port=port, enable_grpc=False, enable_latency_logging=False, grace_period=DRAIN_S)


def configure_logging() -> None:
    """Warnings of the libraries and our own lines, to stderr; no access log."""
    import kserve.logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    quiet = {"level": "WARNING", "handlers": ["stderr"], "propagate": False}
    kserve.logging.configure_logging(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "loggers": {
                "kserve": quiet,
                # One line per request, with its path.
                "kserve.trace": {"level": "CRITICAL", "handlers": [], "propagate": False},
                "uvicorn": quiet,
                "uvicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
                "unirg.serving": quiet | {"level": "INFO"},
            },
        }
    )


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve one checkpoint over OpenAI chat completions.")
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--model-name", required=True)
    parser.add_argument("--model-digest", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--ready-file", type=Path, help="receives the base URL when requests are answered")
    parser.add_argument("--threads", type=int, default=1, help="of one generation step")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--die-with-parent", type=int, metavar="PID", help="end when this parent ends")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, warm up, and serve until SIGTERM or Ctrl-C.

    Raises:
        UserError: the model directory is unusable.
    """
    given = _parsed(arguments)
    if given.die_with_parent is not None:
        processes.die_with_parent(parent=given.die_with_parent)
    sys.argv = sys.argv[:1]  # KServe parses the command line when it is imported

    import torch

    from unirg.serving.batching import Batcher
    from unirg.serving.generation import Policy

    torch.set_num_threads(given.threads)
    configure_logging()
    policy = Policy(given.model_dir)
    policy.warm_up()
    batcher = Batcher(policy.prompt, policy.complete, given.max_batch, MAX_WAITING)
    model = build_model(given.model_name, given.model_digest, batcher)
    build_server(given.host, given.port, batcher, given.ready_file).start([model])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    # Taking an interpreter with torch apart costs seconds, and there is nothing left to save.
    os._exit(0)
