"""A schedule by events in a cluster: one Deployment and one Service, made, found, changed and removed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import deploy
from pipelines.deploy import DEPLOYMENT, SERVICE, ListenerConfig, apply, objects, remove
from tests.kubernetes import Server
from unirg import cli, cluster
from unirg.cluster import Cluster, ClusterError
from unirg.objects import Object

CONFIG = ListenerConfig(image="registry/toolbox:1", token="notices/token")
WORDS = ["retrain", "store=s3://s", "--name", "north", "--host", "http://ml-pipeline.kubeflow:8888"]
COMMAND = [
    *("schedule", "score_archive", "archive=s3://incoming/north", "checkpoint=s3://s/grpo", "store=s3://s"),
    *("--on-event", "--name", "north", "--watch", "s3://incoming/north", "--settle", "400"),
    *("--host", "http://ml-pipeline.kubeflow:8888", "--namespace", "radiology", "--experiment", "north"),
    *("--listener", "image=registry/toolbox:1", "--listener", "token=notices/token"),
]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().running() as running:
        yield running


@pytest.fixture
def where(server: Server, tmp_path: Path) -> Cluster:
    found = cluster.connect(kubeconfig=str(server.kubeconfig(tmp_path / "config")))
    found.pause_s = 0.001
    return found


def spec(where: Cluster) -> Object:
    found = where.get(DEPLOYMENT, "north-listener")
    assert found is not None
    return dict(found["spec"]["template"]["spec"])


def container(where: Cluster) -> Object:
    (one,) = spec(where)["containers"]
    return dict(one)


def test_the_same_settings_change_nothing_and_others_replace(server: Server, where: Cluster) -> None:
    assert apply(where, CONFIG, "north", WORDS) == "created"
    before = dict(server.objects)
    assert apply(where, CONFIG, "north", WORDS) == "found"
    assert server.objects == before
    other = ListenerConfig(image="registry/toolbox:2", token="notices/token")
    assert apply(where, other, "north", [*WORDS, "--settle", "60"]) == "replaced"
    assert "60" in container(where)["args"]
    assert container(where)["image"] == "registry/toolbox:2"
    assert len(server.objects) == 2


def test_what_others_added_to_the_objects_stays(where: Cluster) -> None:
    apply(where, CONFIG, "north", WORDS)
    found = where.get(DEPLOYMENT, "north-listener")
    assert found is not None
    found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
    where.replace(DEPLOYMENT, found)
    assert apply(where, CONFIG, "north", [*WORDS, "--settle", "60"]) == "replaced"
    found = where.get(DEPLOYMENT, "north-listener")
    assert found is not None
    assert found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "1"


def test_a_changed_service_keeps_its_address(server: Server, where: Cluster) -> None:
    apply(where, CONFIG, "north", WORDS)
    service = server.objects["services", "unirg", "north-listener"]
    service["metadata"]["annotations"][deploy.DIGEST] = "of another version"
    service["spec"]["ports"][0]["port"] = 8080
    assert apply(where, CONFIG, "north", WORDS) == "replaced"
    changed = where.get(SERVICE, "north-listener")
    assert changed is not None
    assert changed["spec"]["clusterIP"] == service["spec"]["clusterIP"]
    assert changed["spec"]["ports"][0]["port"] == 80


@pytest.mark.parametrize("lost", [0, 1], ids=["before it is done", "after it was done"])
@pytest.mark.parametrize("at", ["POST", "PUT"])
def test_a_lost_answer_ends_in_the_same_objects(server: Server, where: Cluster, at: str, lost: int) -> None:
    if at == "PUT":
        apply(where, CONFIG, "north", WORDS)
    server.fail(at, lost)
    apply(where, CONFIG, "north", [*WORDS, "--settle", "60"])
    assert apply(where, CONFIG, "north", [*WORDS, "--settle", "60"]) == "found"
    assert len(server.objects) == 2


def test_a_change_meanwhile_is_read_and_changed_again(server: Server, where: Cluster) -> None:
    apply(where, CONFIG, "north", WORDS)
    server.fail("PUT", 409, times=2)
    assert apply(where, CONFIG, "north", [*WORDS, "--settle", "60"]) == "replaced"


def test_the_listener_is_removed_and_others_objects_are_left(server: Server, where: Cluster) -> None:
    assert not remove(where, "north")
    apply(where, CONFIG, "north", WORDS)
    apply(where, CONFIG, "south", WORDS)
    assert remove(where, "north")
    assert {key[2] for key in server.objects} == {"south-listener"}
    found = where.get(SERVICE, "south-listener")
    assert found is not None
    del found["metadata"]["labels"][deploy.SCHEDULE]
    server.objects[("services", "unirg", "south-listener")] = found
    for act in (lambda: remove(where, "south"), lambda: apply(where, CONFIG, "south", WORDS)):
        with pytest.raises(ClusterError, match="give another --name"):
            act()


def test_the_pod_may_do_nothing_that_it_need_not(where: Cluster) -> None:
    apply(where, CONFIG, "north", WORDS)
    pod, one = spec(where), container(where)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert one["resources"]["limits"] == {"memory": "512Mi"}
    assert "notices" not in json.dumps(one)  # the token is a file
    mounted = {mount["name"] for mount in one["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]} == {"scratch", "token", "kfp"}


def test_what_a_hospital_sets_reaches_the_pod() -> None:
    more = {
        "service_account": "listener",
        "certificates": "authority",
        "kfp_audience": "",
        "node_selector": {"pool": "small"},
        "tolerations": [{"key": "small"}],
        "pull_secrets": ["registry"],
        "environment": {"UNIRG_IMAGE": "registry/toolbox:1"},
    }
    config = ListenerConfig.model_validate(CONFIG.model_dump() | more)
    (_, (_, deployment)) = objects(config, "north", [*WORDS, "data=s3://b/$(HOME)"])
    pod = deployment["spec"]["template"]["spec"]
    (one,) = pod["containers"]
    assert pod["serviceAccountName"] == "listener"
    assert pod["nodeSelector"] == {"pool": "small"}
    assert pod["tolerations"] == [{"key": "small", "operator": "Exists"}]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert {volume["name"] for volume in pod["volumes"]} == {"scratch", "token", "certificates"}
    assert {"name": "SSL_CERT_FILE", "value": "/etc/unirg/ca.crt"} in one["env"]
    assert {"name": "UNIRG_IMAGE", "value": "registry/toolbox:1"} in one["env"]
    assert "data=s3://b/$$(HOME)" in one["args"]  # Kubernetes makes $(HOME) of it


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "config")))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["pipeline", *arguments])
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


def test_the_command_sets_up_a_listener_whose_own_command_holds(
    server: Server, where: Cluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run(*COMMAND)
    assert (code, out) == (0, "http://north-listener.unirg.svc/events\n"), err
    assert "schedule north: created" in err
    assert "schedule north: found" in run(*COMMAND)[2]
    # What the pod runs is a command of ours that takes these words.
    one = container(where)
    assert one["command"] == ["python", "-m", "unirg.cli", "pipeline", "listen"]
    begun: dict[str, Any] = {}
    monkeypatch.setattr("pipelines.webhook.serve", lambda listener, *rest: begun.update(it=listener, at=rest))
    assert run("listen", *one["args"])[0] == 0
    assert begun["at"] == ("0.0.0.0", 8080, "/var/run/secrets/unirg/token")
    listener = begun["it"]
    assert (listener.name, listener.settle_s, listener.place.folder) == ("north", 400.0, "north")
    assert listener.runs.server.host == "http://ml-pipeline.kubeflow:8888"
    assert (listener.runs.server.namespace, listener.runs.experiment) == ("radiology", "north")
    assert listener.runs.given["archive"] == "s3://incoming/north"
    assert listener._first is not None  # it catches up
    assert "schedule north: removed" in run("unschedule", "score_archive", "--name", "north", "--on-event")[2]
    assert server.objects == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--host", "http://localhost:8888"), "is this machine's"),
        (("--host", "http://127.0.0.1:8888"), "is this machine's"),
        (("--watch", "/data"), "--watch /data: notices come from a bucket"),
        (("--cron", "0 3 * * 0"), "name either --cron EXPRESSION or --on-event"),
        (("--kfp-token-file", "x"), "a listener's pod gets its own"),
        (("--listener", "imagee=x"), "unknown key imagee: did you mean image?"),
        (("--listener", "token=x"), "token"),
        (("--name", "North"), "--name North"),
        (("--longest", "399"), "--longest 399 is less than --settle 400"),
    ],
)
def test_a_mistake_is_told_before_anything_is_sent(
    server: Server, run: Run, change: tuple[str, str], said: str
) -> None:
    code, _, err = run(*COMMAND, *change)
    assert code == 2
    assert said in err
    assert server.requests == []
