from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests import toy
from unirg import artifact, checkpoint
from unirg.artifact import Artifact, ArtifactError
from unirg.config import Config
from unirg.errors import UserError
from unirg.serving import access
from unirg.serving.endpoint import FILE, ServeConfig, open_endpoint, open_local, serve


class _Empty(Config):
    pass


def test_serving_declares_the_model_and_starts_nothing(model: Artifact, store: str) -> None:
    served = serve(ServeConfig(model_name="declared"), model, store)
    content = json.loads(served.path(FILE).read_text())
    assert content == {"kind": "local", "model_name": "declared", "model_digest": model.digest}
    endpoint = open_endpoint(served.uri)
    assert (endpoint.model_name, endpoint.model_digest) == ("declared", model.digest)


def test_a_server_for_its_own_user_asks_for_no_token(
    model: Artifact, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who serves with a token in the environment could not score with a checkpoint."""
    monkeypatch.setenv(access.VARIABLE, "a-token-of-another-server")
    with open_local(serve(ServeConfig(), model, store)).connect() as url:
        assert httpx.get(f"{url}/models", trust_env=False).status_code == 200


def test_an_endpoint_s_digest_depends_neither_on_the_place_nor_on_operational_settings(
    model: Artifact, store: str, tmp_path: Path
) -> None:
    here = serve(ServeConfig(threads=1), model, store)
    copy = shutil.copytree(model.uri, tmp_path / "elsewhere" / "base" / "copied")
    there = serve(
        ServeConfig(threads=2, max_batch=3), artifact.open_artifact(str(copy)), str(tmp_path / "other")
    )
    assert here.digest == there.digest
    assert open_local(there).config.max_batch == 3


def test_only_a_checkpoint_can_be_served(store: str) -> None:
    with pytest.raises(ArtifactError, match="stage cohort: name a checkpoint"):
        serve(ServeConfig(), toy.make_cohort(store, 6), store)


def test_a_checkpoint_that_is_gone_is_named(model: Artifact, store: str, tmp_path: Path) -> None:
    copy = shutil.copytree(model.uri, tmp_path / "base" / "copied")
    served = serve(ServeConfig(model_name="gone"), artifact.open_artifact(str(copy)), store)
    shutil.rmtree(copy)
    with pytest.raises(ArtifactError, match=r"no artifact at .*base/copied"), open_endpoint(served).connect():
        pass


def test_an_altered_weight_is_noticed_before_it_is_served(
    model: Artifact, store: str, tmp_path: Path
) -> None:
    copy = shutil.copytree(model.uri, tmp_path / "base" / "altered")
    served = serve(ServeConfig(model_name="altered"), artifact.open_artifact(str(copy)), store)
    weights = copy / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with (
        pytest.raises(ArtifactError, match=r"model\.safetensors is altered"),
        open_endpoint(served).connect(),
    ):
        pass


def test_a_server_that_cannot_load_its_model_says_why(model: Artifact, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with artifact.draft(store, "base", 1, _Empty(), {}) as draft:
        shutil.copytree(model.directory / "model", draft.out / checkpoint.MODEL)
        (draft.out / "model" / "model.safetensors").write_bytes(b"no weights")
        broken = draft.commit()
    endpoint = open_endpoint(serve(ServeConfig(), broken, store))
    with pytest.raises(UserError, match=r"(?s)ended with exit code \d.*safetensors"), endpoint.connect():
        pass


def test_a_server_that_is_not_ready_in_time_is_ended(model: Artifact, store: str) -> None:
    served = serve(ServeConfig(start_timeout_s=0.05, model_name="slow"), model, store)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"not ready after 0\.05 s"), open_endpoint(served).connect():
        pass
    assert time.monotonic() - started < 10


def test_a_server_that_dies_at_work_is_told_of(
    model: Artifact, store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def children() -> set[str]:
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    before = children()
    endpoint = open_endpoint(serve(ServeConfig(), model, store))
    with endpoint.connect() as url:
        (server,) = children() - before
        os.kill(int(server), signal.SIGKILL)
        time.sleep(0.2)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/models")
    told = capfd.readouterr().err
    assert "the model server ended with exit code -9" in told
    assert "ready at" in told


def test_a_foreground_server_answers_on_its_port_until_it_is_interrupted(model: Artifact, store: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = serve(ServeConfig(model_name="foreground"), model, store)
    program = (
        "import sys\n"
        "from unirg.artifact import open_artifact\n"
        "from unirg.serving.endpoint import run_foreground\n"
        "run_foreground(open_artifact(sys.argv[1]), int(sys.argv[2]))\n"
        "print('ended', flush=True)\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program, served.uri, str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr
        while "ready at" not in (line := server.stderr.readline()):
            assert line, "the server ended"
        listed = httpx.get(f"http://127.0.0.1:{port}/openai/v1/models").json()
        assert listed["data"][0]["id"] == "foreground"
        server.send_signal(signal.SIGINT)
        out, _ = server.communicate(timeout=30)
        assert (server.returncode, out.strip()) == (0, "ended")
    finally:
        server.kill()
        server.wait()
