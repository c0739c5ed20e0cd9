"""An endpoint: which model answers, under which name, and how to reach it.

The `serve` artifact says what is served and runs nothing. A local endpoint starts its server at the first
use and takes it down with its user (scale to zero, as KServe does in a cluster), so that a rerun in which
everything is scored starts no server.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from unirg import artifact, checkpoint, processes, telemetry
from unirg.artifact import Artifact, ArtifactError
from unirg.config import Config, operational

VERSION = 1
FILE = "endpoint.json"
STOP_S = 10
_LOG_LINES = 8


class ServeConfig(Config):
    """How a checkpoint is served."""

    model_name: str = Field(default="unirg", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    """What requests call the model."""
    threads: int = operational(1, ge=1)
    """Threads of one generation step. A toy policy is fastest with 1; another thread prepares images."""
    max_batch: int = operational(32, ge=1)
    """Requests generated together; their texts do not depend on it."""
    start_timeout_s: float = operational(300.0, gt=0)
    """Seconds that loading and warming may take."""


@telemetry.verb("serve")
def serve(config: ServeConfig, model: Artifact, store: str) -> Artifact:
    """Declare an endpoint for a checkpoint artifact.

    Raises:
        ArtifactError: it is no checkpoint.
    """
    with artifact.draft(store, "serve", VERSION, config, {"checkpoint": model}) as draft:
        if draft.committed:
            return draft.committed
        _model_directory(model)
        # Where the checkpoint lies is in the manifest's inputs: content does not depend on a place.
        content = {"kind": "local", "model_name": config.model_name, "model_digest": model.digest}
        (draft.out / FILE).write_text(json.dumps(content, indent=1, sort_keys=True))
        return draft.commit()


def _model_directory(model: Artifact) -> Path:
    if model.manifest.stage not in checkpoint.STAGES:
        raise ArtifactError(
            f"{model.uri} was made by stage {model.manifest.stage}: name a checkpoint "
            f"({', '.join(checkpoint.STAGES)})"
        )
    directory = model.directory / checkpoint.MODEL
    checkpoint.check(directory)
    return directory


@dataclass(frozen=True)
class Endpoint:
    """A model that can be asked. `connect` makes it answer."""

    model_name: str
    model_digest: str
    """Digest of the checkpoint artifact."""
    checkpoint_uri: str
    config: ServeConfig
    restarts: ClassVar[bool] = True
    """`connect` starts a server of its own."""

    def arguments(self) -> list[str]:
        """The predictor's command line, once the checkpoint is verified and at hand.

        Raises:
            ArtifactError: the checkpoint is gone or altered.
        """
        model = artifact.open_artifact(self.checkpoint_uri, checkpoint.STAGES)
        if model.digest != self.model_digest:
            raise ArtifactError(f"{model.uri} is another model than this endpoint's: serve it again")
        return [
            *("--model-dir", str(_model_directory(model))),
            *("--model-name", self.model_name),
            *("--model-digest", self.model_digest),
            *("--threads", str(self.config.threads)),
            *("--max-batch", str(self.config.max_batch)),
        ]

    @contextmanager
    def connect(self) -> Iterator[str]:
        """The base URL of the OpenAI protocol, answered until the context ends.

        The server ends with the thread that connects, even by kill -9.

        Raises:
            ArtifactError: the checkpoint is gone or altered.
            UserError: the server did not start; its last log lines say why.
        """
        command = [sys.executable, "-m", "unirg.serving.predictor", *self.arguments()]
        threads = {"OMP_NUM_THREADS": str(self.config.threads)}
        with processes.server(command, "the model server", self.config.start_timeout_s, threads) as url:
            yield url


def open_endpoint(source: str | Artifact) -> Endpoint:
    """The endpoint that a `serve` artifact declares.

    Raises:
        ArtifactError: there is none.
    """
    found = artifact.open_artifact(source, "serve") if isinstance(source, str) else source
    content = json.loads(found.path(FILE).read_bytes())
    return Endpoint(
        model_name=content["model_name"],
        model_digest=content["model_digest"],
        checkpoint_uri=found.manifest.inputs["checkpoint"].uri or "",
        config=ServeConfig.model_validate(found.manifest.config),
    )


def run_foreground(served: Artifact, port: int = 8080, host: str = "127.0.0.1") -> None:
    """Answer for a `serve` artifact in this process until Ctrl-C or SIGTERM.

    Raises:
        UserError: the checkpoint is gone, altered or unusable.
    """
    from unirg.serving import predictor

    endpoint = open_endpoint(served)
    predictor.main([*endpoint.arguments(), "--host", host, "--port", str(port)])
