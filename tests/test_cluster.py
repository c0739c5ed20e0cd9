"""The Kubernetes client against an API that fails in every way that a long run meets."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import crds
from tests.balancer import Balancer
from tests.controller import Controller
from tests.kubernetes import Server
from unirg import cluster
from unirg.cluster import Cluster, ClusterError, Conflict, Unreachable
from unirg.objects import POD, Kind, Object, condition, holds, uid

JOB = Kind("trainer.kubeflow.org/v1alpha1", "trainjobs", "TrainJob")


def job(name: str = "one", **spec: Any) -> Object:
    return {
        "apiVersion": JOB.api,
        "kind": JOB.kind,
        "metadata": {"name": name, "labels": {"team": "a"}},
        "spec": {"runtimeRef": {"name": "torch"}} | spec,
    }


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().running() as running:
        yield running


@pytest.fixture
def kubeconfig(server: Server, tmp_path: Path) -> Path:
    return server.kubeconfig(tmp_path / "config")


@pytest.fixture
def api(kubeconfig: Path) -> Cluster:
    made = cluster.connect(kubeconfig=str(kubeconfig))
    made.pause_s, made.patience_s = 0.01, 5
    return made


@pytest.fixture
def controller(kubeconfig: Path) -> Controller:
    return Controller(kubeconfig)


def followed(api: Cluster, of: Object, into: list[Object]) -> threading.Thread:
    """Collect an object's versions in a thread until it is gone."""

    def collect() -> None:
        into.extend(api.follow(JOB, of["metadata"]["name"], uid(of)))

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    return thread


def _as_many(one: list[str], other: list[str]) -> bool:
    return len(one) == len(other)


def soon(true: Any) -> None:
    until = time.monotonic() + 10
    while not true():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.01)


def test_an_object_is_made_found_listed_and_deleted(api: Cluster) -> None:
    made = api.create(JOB, job())
    api.create(JOB, job("two"))
    assert api.namespace == "unirg"
    assert made["spec"]["runtimeRef"]["kind"] == "ClusterTrainingRuntime"  # the schema's default
    assert [one["metadata"]["name"] for one in api.list(JOB, {"team": "a"})] == ["one", "two"]
    assert api.list(JOB, {"team": "b"}) == []
    api.delete(JOB, made)
    assert api.get(JOB, "one") is None
    api.delete(JOB, made)  # what is gone is deleted


def test_a_name_that_is_taken_is_a_conflict(api: Cluster) -> None:
    api.create(JOB, job())
    with pytest.raises(Conflict, match="already exists"):
        api.create(JOB, job())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"podTemplateOverrides": []}, 'unknown field "spec.podTemplateOverrides"'),
        ({"trainer": {"numNodes": "4"}}, "spec.trainer.numNodes: '4' is no integer"),
        ({"activeDeadlineSeconds": 0}, "minimum 1"),
        ({"runtimeRef": {}}, "spec.runtimeRef.name: required"),
        ({"managedBy": "me"}, "ManagedBy must be"),
    ],
)
def test_an_invalid_object_is_refused_by_name(api: Cluster, wrong: Object, told: str) -> None:
    with pytest.raises(ClusterError) as caught:
        api.create(JOB, job(**wrong))
    assert told in str(caught.value)


def test_a_missing_operator_and_a_missing_right_name_the_remedy(api: Cluster, server: Server) -> None:
    with pytest.raises(ClusterError, match="is the operator installed"):
        api.create(Kind("kubeflow.org/v1", "mpijobs", "MPIJob"), job())
    server.fail("GET", 403)
    with pytest.raises(ClusterError, match=r"get TrainJob one in namespace unirg \(403.*ask for a role"):
        api.get(JOB, "one")


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_what_fails_for_a_while_is_repeated(api: Cluster, server: Server, status: int) -> None:
    server.fail("POST", status, times=3)
    assert api.create(JOB, job())["metadata"]["name"] == "one"
    assert server.count("POST") == 4


def test_a_pause_that_the_api_asks_for_is_kept(api: Cluster, server: Server) -> None:
    server.fail("POST", 429, Retry_After="1")
    before = time.monotonic()
    api.create(JOB, job())
    assert time.monotonic() - before >= 1


def test_an_api_that_stays_away_is_told_after_the_patience(api: Cluster, server: Server) -> None:
    api.patience_s = 0.05
    server.fail("GET", 503, times=1000)
    with pytest.raises(Unreachable, match=r"could not get TrainJob one .* for 0\.05 s \(503"):
        api.get(JOB, "one")


def test_a_handshake_that_breaks_off_is_repeated(tmp_path: Path) -> None:
    balancer = Balancer(tmp_path, breaks=3)
    assert balancer.api(trusted=balancer.certificate).get(JOB, "one")
    assert balancer.connections == 4


def test_a_certificate_that_is_not_trusted_ends_the_call_at_once(tmp_path: Path) -> None:
    balancer = Balancer(tmp_path, breaks=0)
    with pytest.raises(ClusterError, match=r"CERTIFICATE_VERIFY_FAILED.*certificate-authority"):
        balancer.api(trusted=None).get(JOB, "one")
    assert balancer.connections == 1


def test_a_lost_answer_to_a_creation_ends_as_a_conflict_not_as_two_objects(
    api: Cluster, server: Server
) -> None:
    server.fail("POST", 1)
    with pytest.raises(Conflict):
        api.create(JOB, job())
    assert len(server.objects) == 1


def test_an_expired_token_is_read_again(api: Cluster, server: Server, kubeconfig: Path) -> None:
    api.create(JOB, job())
    server.tokens = {"renewed"}
    server.kubeconfig(kubeconfig, token="renewed")
    assert api.get(JOB, "one")
    server.tokens = {"another"}
    with pytest.raises(ClusterError, match="sign in again"):
        api.get(JOB, "one")


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    lost = cluster.connect(kubeconfig=str(tmp_path / "none"))
    with pytest.raises(ClusterError, match="name a kubeconfig"):
        lost.get(JOB, "one")


def test_an_object_is_followed_through_every_break_until_it_is_gone(
    api: Cluster, server: Server, controller: Controller
) -> None:
    def away() -> None:
        server.fail("watch=true", 0, times=2)
        server.cut()

    made = api.create(JOB, job())
    seen: list[Object] = []
    thread = followed(api, made, seen)
    for number, disturb in enumerate(
        [
            lambda: None,
            server.cut,
            server.compact,
            lambda: server.fail("watch=true", 410),
            lambda: server.fail("watch=true", 503, times=2),
            away,
        ]
    ):
        disturb()
        controller.condition("one", "Suspended", reason=f"Round{number}")
        told = f"Round{number}"
        soon(lambda told=told: any(condition(one, "Suspended").get("reason") == told for one in seen))
    controller.delete("one")
    thread.join(10)
    assert not thread.is_alive()


def test_an_object_older_than_what_the_api_remembers_is_watched_not_polled(
    api: Cluster, server: Server, controller: Controller
) -> None:
    made = api.create(JOB, job())
    server.compact()
    seen: list[Object] = []
    thread = followed(api, made, seen)
    soon(lambda: server.count("watch=true"))
    controller.condition("one", "Suspended")
    soon(lambda: any(holds(one, "Suspended") for one in seen))
    controller.delete("one")
    thread.join(10)
    assert not thread.is_alive()
    assert server.count("watch=true") == 1


def test_an_object_replaced_by_another_of_its_name_is_gone(
    api: Cluster, server: Server, controller: Controller
) -> None:
    made = api.create(JOB, job())
    seen: list[Object] = []
    thread = followed(api, made, seen)
    soon(lambda: server.count("watch=true"))
    server.fail("GET", 503, times=5)  # both happen while nobody sees it
    server.cut()
    controller.delete("one")
    second = api.create(JOB, job())
    thread.join(10)
    assert not thread.is_alive()
    assert {uid(one) for one in seen} == {uid(made)}
    api.delete(JOB, made)  # not this one's successor
    found = api.get(JOB, "one")
    assert found is not None
    assert uid(found) == uid(second)


def test_a_deletion_is_waited_for(api: Cluster, controller: Controller) -> None:
    made = api.create(JOB, job())
    controller.finalizers("one", "example.com/pods")
    thread = threading.Thread(target=api.delete, args=(JOB, made), daemon=True)
    thread.start()
    soon(lambda: "deletionTimestamp" in (api.get(JOB, "one") or made)["metadata"])
    assert thread.is_alive()
    controller.finalizers("one")
    thread.join(10)
    assert api.get(JOB, "one") is None


def test_a_stale_update_is_refused_by_the_double_as_by_the_real_one(
    api: Cluster, controller: Controller
) -> None:
    from kubernetes.client import ApiException

    stale = api.create(JOB, job())
    controller.condition("one", "Suspended")
    with pytest.raises(ApiException) as caught:
        controller.custom.replace_namespaced_custom_object_status(*controller.place, "one", stale)
    assert caught.value.status == 409
    stale["metadata"].pop("resourceVersion")
    with pytest.raises(ApiException, match="must be specified for an update") as caught:
        controller.custom.replace_namespaced_custom_object(*controller.place, "one", stale)
    assert caught.value.status == 422
    (fresh,) = controller.jobs()
    fresh["spec"]["runtimeRef"]["name"] = "other"
    with pytest.raises(ApiException, match="field is immutable"):
        controller.custom.replace_namespaced_custom_object(*controller.place, "one", fresh)


def test_the_double_prunes_unknown_fields_unless_it_is_asked_to_be_strict_as_the_real_one_does(
    controller: Controller,
) -> None:
    from kubernetes.client import ApiException

    wrong = job(surprise=1, trainer={"numNodes": 2, "surprise": 1})
    wrong["metadata"]["surprise"] = 1
    make = functools.partial(controller.custom.create_namespaced_custom_object, *controller.place, wrong)
    with pytest.raises(ApiException, match="strict decoding error") as caught:
        make(field_validation="Strict")
    assert caught.value.status == 400
    with pytest.raises(ApiException, match="Unsupported value"):
        make(field_validation="strict")
    made = make()
    assert made["spec"]["trainer"] == {"numNodes": 2}
    assert "surprise" not in f"{made}"
    made["spec"]["surprise"] = 1
    again = controller.custom.replace_namespaced_custom_object(*controller.place, "one", made)
    assert "surprise" not in f"{again}"


def collected(api: Cluster, pod: str, lines: list[str], **options: Any) -> threading.Thread:
    found = api.get(POD, pod)
    assert found is not None

    def collect() -> None:
        lines.extend(api.logs(found, "node", **options))

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    return thread


def test_a_log_is_read_once_and_whole_through_every_break(
    api: Cluster, server: Server, controller: Controller
) -> None:
    pod = controller.pod("one")
    lines: list[str] = []
    thread = collected(api, pod, lines, over=lambda: False)
    soon(lambda: server.count("/log?") >= 2)  # it waits to start
    controller.state(pod, "Running", {"running": {}})
    written: list[str] = []
    for number in range(6):
        written += [f"line {number}", f"line {number}", ""]  # alike, and empty
        server.log(pod, *written[-3:])
        soon(functools.partial(_as_many, lines, written))
        if number == 3:
            server.fail("/log?", 500, times=2)
        server.cut()
    server.log(pod, "the last")
    controller.state(pod, "Succeeded", {"terminated": {"exitCode": 0}})
    thread.join(10)
    assert lines == [*written, "the last"]


def test_the_end_of_a_log_is_enough_for_who_comes_late(
    api: Cluster, server: Server, controller: Controller
) -> None:
    pod = controller.pod("one")
    controller.state(pod, "Failed", {"terminated": {"exitCode": 1}})
    server.log(pod, *(f"line {number}" for number in range(100)))
    lines: list[str] = []
    collected(api, pod, lines, tail=2).join(10)
    assert lines == ["line 98", "line 99"]


def test_a_log_whose_pod_never_began_ends_when_it_is_over(api: Cluster, controller: Controller) -> None:
    lines: list[str] = []
    collected(api, controller.pod("one"), lines, over=lambda: True).join(10)
    assert lines == []


def test_the_double_holds_the_samples_that_a_real_api_server_accepted() -> None:
    import yaml

    samples = crds.CRDS.parent / "facts" / "samples"
    for file, plural in (("trainjob", "trainjobs"), ("runtime", "clustertrainingruntimes")):
        thing = yaml.safe_load((samples / f"{file}.yaml").read_text())
        assert crds.problems(plural, thing) == []
        thing["spec"]["surprise"] = 1
        assert crds.problems(plural, thing) == ['unknown field "spec.surprise"']
