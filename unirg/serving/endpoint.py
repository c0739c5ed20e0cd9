"""An endpoint: which model answers, under which name, and how to reach it.

The `serve` artifact says what is served and runs nothing. A local endpoint starts its server at the first
use and takes it down with its user (scale to zero, as KServe does in a cluster), so that a rerun in which
everything is scored starts no server. One in a cluster is an InferenceService: it is started at the first
use, too, and stays until it is stopped, for others and for the next client.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from unirg import artifact, checkpoint, processes, telemetry
from unirg.artifact import Artifact, ArtifactError
from unirg.config import Config, operational
from unirg.errors import UserError
from unirg.serving import access, inference_service, rollout
from unirg.serving.inference_service import InferenceServiceConfig, Served
from unirg.serving.rollout import InferenceServiceEndpoint

VERSION = 1
FILE = "endpoint.json"


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
    cluster: InferenceServiceConfig | None = None
    """Where and with what an InferenceService runs; None: a process of this machine. The settings above but
    `model_name` are that process's."""


@telemetry.verb("serve")
def serve(config: ServeConfig, model: Artifact, store: str) -> Artifact:
    """Declare an endpoint for a checkpoint artifact.

    Raises:
        ArtifactError: it is no checkpoint.
    """
    with artifact.draft(store, "serve", VERSION, config, {"checkpoint": model}) as draft:
        if draft.committed:
            return draft.committed
        _is_checkpoint(model)
        kind, name = "local", config.model_name
        if config.cluster:
            rollout.storage_uri(model)
            kind, name = "inference_service", inference_service.model_name(config.model_name, model.digest)
        else:
            checkpoint.check(model.directory / checkpoint.MODEL)
        # Where the checkpoint lies is in the manifest's inputs: content does not depend on a place.
        content = {"kind": kind, "model_name": name, "model_digest": model.digest}
        (draft.out / FILE).write_text(json.dumps(content, indent=1, sort_keys=True))
        return draft.commit()


def _is_checkpoint(model: Artifact) -> None:
    if model.manifest.stage not in checkpoint.STAGES:
        raise ArtifactError(
            f"{model.uri} was made by stage {model.manifest.stage}: name a checkpoint "
            f"({', '.join(checkpoint.STAGES)})"
        )


@dataclass(frozen=True)
class LocalEndpoint:
    """A model in a process of this machine, which lives while somebody is connected."""

    model_name: str
    model_digest: str
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
            *("--model-dir", checkpoint.check(model.directory / checkpoint.MODEL)),
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
        # It is its user's alone, who knows no token.
        environment = {"OMP_NUM_THREADS": str(self.config.threads), access.VARIABLE: None}
        with processes.server(command, "the model server", self.config.start_timeout_s, environment) as url:
            yield url

    def stop(self) -> None:
        """There is nothing left to stop: the server ended with its user."""


def open_endpoint(source: str | Artifact) -> LocalEndpoint | InferenceServiceEndpoint:
    """The endpoint that a `serve` artifact declares.

    Raises:
        ArtifactError: there is none.
    """
    found = artifact.open_artifact(source, "serve") if isinstance(source, str) else source
    content = json.loads(found.path(FILE).read_bytes())
    config = ServeConfig.model_validate(found.manifest.config)
    uri = found.manifest.inputs["checkpoint"].uri or ""
    if config.cluster is None:
        return LocalEndpoint(content["model_name"], content["model_digest"], uri, config)
    served = Served(
        uri=found.uri,
        service=config.cluster.service or rollout.name_of(found.uri),
        alias=config.model_name,
        model_name=content["model_name"],
        model_digest=content["model_digest"],
        config=config.cluster,
    )
    return InferenceServiceEndpoint(served, uri)


def open_local(source: str | Artifact) -> LocalEndpoint:
    """An endpoint that is a process of this machine.

    Raises:
        UserError: it is in a cluster.
    """
    endpoint = open_endpoint(source)
    if isinstance(endpoint, InferenceServiceEndpoint):
        raise UserError(f"{endpoint.served.uri} is served by a cluster: ask for it without settings of one")
    return endpoint


def open_in_cluster(source: str | Artifact) -> InferenceServiceEndpoint:
    """An endpoint that is an InferenceService.

    Raises:
        UserError: it is a process of one machine.
    """
    endpoint = open_endpoint(source)
    if isinstance(endpoint, LocalEndpoint):
        uri = source if isinstance(source, str) else source.uri
        raise UserError(
            f"{uri} is a process of one machine, which ends with its user: name an endpoint that "
            "`unirg serve` declared with cluster.… settings, such as --recipe paper/serve_cluster"
        )
    return endpoint


def run_foreground(served: Artifact, port: int = 8080, host: str = "127.0.0.1", token_file: str = "") -> None:
    """Answer for a `serve` artifact in this process until Ctrl-C or SIGTERM.

    Args:
        token_file: requests must show its content as bearer token; empty: nobody is asked for one, unless
            the environment holds one.

    Raises:
        UserError: the checkpoint is gone, altered or unusable; the token file is.
    """
    from unirg.serving import predictor

    place = ["--host", host, "--port", str(port)]
    predictor.main([*open_local(served).arguments(), *place, "--token-file", token_file])
