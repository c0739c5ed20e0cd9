"""A KServe model server for one checkpoint, on transformers, speaking OpenAI chat completions.

    python -m unirg.serving.predictor --model-dir DIR --model-name NAME --model-digest D --ready-file PATH

The socket opens when the policy is loaded and warm: whoever can connect is answered. On SIGTERM the server
is no longer ready, refuses what is new (503, Retry-After), finishes what it has accepted and then closes.
Nothing of a request is logged, and there is no access log.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unirg import processes
from unirg.errors import UserError
from unirg.serving import access

if TYPE_CHECKING:
    from unirg.serving.batching import Batcher

logger = logging.getLogger("unirg.serving")
DIGEST_HEADER = "X-Model-Digest"
DRAIN_S = 30
"""How long accepted requests may take after SIGTERM."""
CLOSE_S = 5
"""How long their answers may then take to be sent."""
MAX_WAITING = 256


def build_server(
    host: str, port: int, digest: str, batcher: Batcher[Any, Any, Any], ready_file: Path | None
) -> Any:
    """A `kserve.ModelServer` that listens on one address, runs the batcher and says when it is ready."""
    import kserve

    class Server(kserve.ModelServer):
        async def _serve(self) -> None:
            # ModelServer has no parameter for the address: without this it listens on every one.
            self._rest_server.config.host = host
            self._rest_server.config.http = "h11"  # the other parser holds headers of any size in memory
            self._rest_server.config.headers = [(DIGEST_HEADER, digest)]  # of every response, KServe's too
            self._drain_on_signals()
            tasks = [asyncio.create_task(batcher.run()), asyncio.create_task(self._announce())]
            try:
                await super()._serve()
            finally:
                for task in tasks:
                    task.cancel()

        def _drain_on_signals(self) -> None:
            """Let the first signal drain, and the next one close at once."""
            loop, listening = asyncio.get_running_loop(), self._rest_server._server
            close, signals = listening.handle_exit, []

            def leave(signum: int, frame: Any) -> None:
                signals.append(signum)
                if len(signals) == 1:
                    loop.call_soon_threadsafe(drain)
                else:
                    listening.config.timeout_graceful_shutdown = 0
                    close(signum, frame)

            def drain() -> None:
                for one in self.registered_models.get_models().values():
                    one.ready = False
                batcher.closed = True
                self._draining = asyncio.create_task(self._drained(lambda: close(signals[0], None)))

            listening.handle_exit = leave

        async def _drained(self, close: Callable[[], None]) -> None:
            """Close when what was accepted is answered; until then new requests are told to come later."""
            logger.info("shutting down: finishing %d requests", batcher.admitted_now)
            until = time.monotonic() + DRAIN_S
            while batcher.admitted_now and time.monotonic() < until:
                await asyncio.sleep(0.02)
            close()

        async def _announce(self) -> None:
            listening = self._rest_server._server
            while not listening.started:
                await asyncio.sleep(0.01)
            actual = listening.servers[0].sockets[0].getsockname()[1]
            url = f"http://{host}:{actual}/openai/v1"
            logger.info("ready at %s", url)
            if ready_file:
                aside = ready_file.with_name(ready_file.name + ".part")
                aside.write_text(url)
                aside.replace(ready_file)

    return Server(http_port=port, enable_grpc=False, enable_latency_logging=False, grace_period=CLOSE_S)


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
    parser.add_argument("--token-file", default="", help="requests must show its content as bearer token")
    parser.add_argument("--ready-file", type=Path, help="receives the base URL when requests are answered")
    parser.add_argument("--threads", type=int, default=1, help="of one generation step")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--die-with-parent", type=int, metavar="PID", help="end when this parent ends")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, warm up, and serve until SIGTERM or Ctrl-C.

    Raises:
        UserError: the model directory or the token file is unusable.
    """
    given = _parsed(arguments)
    if given.die_with_parent is not None:
        processes.die_with_parent(parent=given.die_with_parent)
    token = access.read_token(given.token_file)
    sys.argv = sys.argv[:1]  # KServe parses the command line when it is imported

    import torch

    from unirg.serving.batching import Batcher
    from unirg.serving.generation import Policy
    from unirg.serving.routes import build_model

    torch.set_num_threads(given.threads)
    configure_logging()
    policy = Policy(given.model_dir)
    policy.warm_up()
    batcher = Batcher(policy.prompt, policy.complete, given.max_batch, MAX_WAITING)
    model = build_model(given.model_name, given.model_digest, batcher, token)
    build_server(given.host, given.port, given.model_digest, batcher, given.ready_file).start([model])
    policy.abandoned = True  # what is still generated nobody waits for, but the interpreter's end would


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    # Taking an interpreter with torch apart costs seconds, and there is nothing left to save.
    os._exit(0)
