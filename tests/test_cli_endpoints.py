"""`unirg serve` into a cluster and `unirg endpoint`: what they print, and a mistake in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kubernetes import Server
from tests.serving.kserve import KServe, make_checkpoint, vllm
from tests.toy import make_cohort
from unirg import cli
from unirg.artifact import open_artifact
from unirg.serving import predictor, rollout
from unirg.serving.endpoint import ServeConfig, serve

Run = Callable[..., tuple[int, str, str]]
CLUSTER = ("--recipe", "paper/serve_cluster", "cluster.service=cxr")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Call the command line on the test's own store; (exit code, what it printed, what it said on stderr)."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("UNIRG_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(rollout, "POLL_S", 0.02)
    # Artifacts of this machine pass for some in object storage.
    monkeypatch.setattr(rollout, "storage_uri", lambda model: f"s3://models/{model.digest}/model")

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(list(arguments))
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def kserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KServe]:
    """KServe at work in the cluster that the environment names."""
    with Server().running() as server:
        kubeconfig = server.kubeconfig(tmp_path / "config")
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        kserve = KServe(kubeconfig)
        with kserve.at_work():
            yield kserve


@pytest.fixture
def checkpoints(tmp_path: Path) -> tuple[str, str]:
    first, second = (make_checkpoint(str(tmp_path / "store"), seed).uri for seed in range(2))
    return first, second


def test_a_model_is_served_tried_promoted_taken_back_and_taken_down(
    run: Run, kserve: KServe, checkpoints: tuple[str, str]
) -> None:
    code, out, err = run("serve", "--checkpoint", checkpoints[0], *CLUSTER)
    first = out.strip()
    assert (code, open_artifact(first).manifest.stage) == (0, "serve")
    assert "http://cxr-blue-predictor.unirg.svc.cluster.local/v1" in err
    code, out, err = run("serve", "--checkpoint", checkpoints[1], *CLUSTER, "--canary", "10")
    second = out.strip()
    assert "http://cxr-green-predictor.unirg.svc.cluster.local/v1" in err
    assert "is canary with 10% of the requests; ready http://cxr-green" in run("endpoint", "show", second)[1]
    assert "is the stable model" in run("endpoint", "promote", second)[2]
    assert "is stable; ready http://cxr-green" in run("endpoint", "show", second)[1]
    assert "is taken back" in run("endpoint", "rollback", second)[2]
    code, _, err = run("endpoint", "show", second)
    assert (code, f"does not serve {second}: `unirg serve` starts it" in err) == (2, True)
    assert "cxr in namespace unirg: deleted" in run("endpoint", "delete", first)[2]
    assert run("endpoint", "delete", first)[0] == 0
    assert kserve.services() == []


def test_an_archive_is_scored_by_an_endpoint_of_the_cluster(
    run: Run, kserve: KServe, checkpoints: tuple[str, str], tmp_path: Path
) -> None:
    cohort = make_cohort(str(tmp_path / "store"), 3)
    model = open_artifact(checkpoints[0])
    with vllm(f"unirg-cxr-{model.digest[:12]}") as kserve.url:
        _, out, _ = run("serve", "--checkpoint", model.uri, *CLUSTER, "cluster.reach=gateway")
        code, out, err = run("score", "--archive", cohort.uri, "--endpoint", out.strip())
    assert code == 0, err
    assert open_artifact(out.strip(), "score").manifest.inputs["model"].digest == model.digest


def test_a_local_server_gets_the_token_file(
    run: Run, checkpoints: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(predictor, "main", asked.append)
    monkeypatch.setattr("unirg.checkpoint.check", str)  # nothing loads it
    code, _, err = run("serve", "--checkpoint", checkpoints[0], "--port", "0", "--token-file", "/the/token")
    assert code == 0, err
    ((*_, name, value),) = asked
    assert (name, value) == ("--token-file", "/the/token")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*CLUSTER, "--token-file", "x"), "--token-file is for a server on this machine"),
        (("--canary", "10"), "--canary 10 needs a cluster: --recipe paper/serve_cluster"),
        ((*CLUSTER, "--canary", "101"), "less than or equal to 100"),
        ((*CLUSTER, "cluster.gpu=2"), "unknown key cluster.gpu: did you mean cluster.gpus?"),
        ((*CLUSTER, "cluster.max_replicas=4"), "max_replicas = 4 needs prometheus"),
        ((*CLUSTER, "--canary", "10"), "does not exist, so there is nothing to try beside"),
    ],
)
def test_a_users_mistake_is_named_and_starts_nothing(
    run: Run, kserve: KServe, checkpoints: tuple[str, str], arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = run("serve", "--checkpoint", checkpoints[0], *arguments)
    assert (code, said in err) == (2, True), out + err
    assert "Traceback" not in err
    assert kserve.services() == []


@pytest.mark.parametrize("verb", ["show", "promote", "rollback", "delete"])
def test_a_local_endpoint_is_nothing_to_roll_out(
    run: Run, checkpoints: tuple[str, str], verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unirg.checkpoint.check", str)  # nothing loads it
    local = serve(ServeConfig(), open_artifact(checkpoints[0]), str(tmp_path / "store"))
    code, _, err = run("endpoint", verb, local.uri)
    assert (code, "is a process of one machine, which ends with its user" in err) == (2, True)
