"""A model in a cluster: begun, waited for, tried beside another, promoted, taken back and deleted."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests import crds, toy
from tests.conftest import S3
from tests.kubernetes import Server
from tests.serving.kserve import KServe, make_checkpoint, vllm
from tests.waiting import until
from unirg import cluster, config, journal
from unirg.artifact import Artifact, ArtifactError
from unirg.cluster import Cluster, Unreachable
from unirg.errors import UserError
from unirg.objects import ARTIFACT, Toleration, annotation
from unirg.scoring.archive import ScoreConfig, score
from unirg.scoring.client import EndpointGone
from unirg.serving import inference_service as isvc
from unirg.serving import rollout
from unirg.serving.endpoint import ServeConfig, open_endpoint, open_in_cluster, serve
from unirg.serving.inference_service import (
    DIGEST,
    INFERENCE_SERVICE,
    PREVIOUS,
    InferenceServiceConfig,
    Served,
)
from unirg.serving.rollout import InferenceServiceEndpoint, NotReady

REAL = "UNIRG_TEST_KUBECONFIG"
"""Names an API server with KServe's definitions and no controllers; these tests then run there too."""
SERVICE = "cxr"
STORAGE = "s3://models/store/grpo/0123456789abcdef/base/model"
URI = "s3://models/store/serve/0123456789abcdef"
EVERYTHING = InferenceServiceConfig(
    service=SERVICE,
    namespace="unirg",
    gpus=4,
    min_replicas=2,
    max_replicas=8,
    prometheus="http://prometheus.monitoring:9090",
    arguments=("--enforce-eager",),
    environment={"VLLM_LOGGING_LEVEL": "WARNING"},
    node_selector={"node.kubernetes.io/instance-type": "p5.48xlarge"},
    tolerations=(Toleration(key="pool", operator="Equal", value="serve", effect="NoExecute"),),
    service_account="reader",
)


def served(settings: InferenceServiceConfig = EVERYTHING, digest: str = "ab" * 32) -> Served:
    return Served(URI, SERVICE, "unirg-cxr", isvc.model_name("unirg-cxr", digest), digest, settings)


@dataclass
class Place:
    """An API server: ours in it, and the test as KServe."""

    api: Cluster
    kserve: KServe
    store: str
    server: Server | None = None
    lines: list[str] = field(default_factory=list)

    def endpoint(self, seed: int = 0, **settings: Any) -> InferenceServiceEndpoint:
        """The endpoint of a checkpoint of its own, declared as a user would."""
        given: dict[str, Any] = {"service": SERVICE, "ready_timeout_s": 20.0} | settings
        own = config.load(InferenceServiceConfig, **given)
        model = make_checkpoint(self.store, seed)
        declared = serve(ServeConfig(model_name="unirg-cxr", cluster=own), model, self.store)
        endpoint = open_in_cluster(declared.uri)
        return replace(endpoint, where=self.api, tell=self.lines.append)

    def up(self, endpoint: InferenceServiceEndpoint) -> InferenceServiceEndpoint:
        endpoint.begin()
        self.kserve.ready(endpoint.served.service)
        return endpoint

    def found(self) -> dict[str, Any]:
        return self.kserve.get(SERVICE)

    def told(self, text: str) -> bool:
        return any(text in line for line in self.lines)


class Waiting(threading.Thread):
    """A call under way."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.result: object = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.call()
        except BaseException as error:
            self.error = error

    def end(self) -> Any:
        self.join(20)
        assert not self.is_alive()
        if self.error:
            raise self.error
        return self.result


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts of this machine pass for some in object storage, which costs a second a test."""
    monkeypatch.setattr(rollout, "storage_uri", storage_uri)


def storage_uri(model: Artifact) -> str:
    return f"s3://models/{model.digest}/model"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "POLL_S", 0.02)


@pytest.fixture
def double(tmp_path: Path, remote: None) -> Iterator[Place]:
    with Server().running() as server:
        yield at(server.kubeconfig(tmp_path / "config"), "unirg", str(tmp_path / "store"), server)


def at(kubeconfig: Path, namespace: str, store: str, server: Server | None = None) -> Place:
    api = cluster.connect(namespace, kubeconfig=str(kubeconfig))
    api.pause_s, api.patience_s = 0.01, 5
    return Place(api, KServe(kubeconfig, namespace), store, server)


@pytest.fixture(params=["double", "real"])
def place(request: pytest.FixtureRequest, tmp_path: Path, remote: None) -> Place:
    """The double, and the real API server if there is one; a real one keeps the namespaces."""
    if request.param == "double":
        return request.getfixturevalue("double")
    if REAL not in os.environ:
        pytest.skip(f"no real API server: {REAL} names none")
    namespace = f"unirg-test-{uuid.uuid4().hex[:12]}"
    made = at(Path(os.environ[REAL]), namespace, str(tmp_path / "store"))
    made.kserve.core.create_namespace({"metadata": {"name": namespace}})
    return made


# What is asked of the cluster


@pytest.mark.parametrize("settings", [EVERYTHING, InferenceServiceConfig(), InferenceServiceConfig(gpus=0)])
def test_every_manifest_is_valid_by_kserve_s_own_schema(settings: InferenceServiceConfig) -> None:
    stable, tried = (isvc.predictor(served(settings), STORAGE, slot, "unirg") for slot in isvc.SLOTS)
    service = isvc.service(SERVICE, stable)
    service["spec"]["canary"] = [isvc.canary(tried, 10)]
    assert crds.problems("inferenceservices", service) == []


def test_the_configuration_reaches_the_manifest() -> None:
    made = isvc.predictor(served(), STORAGE, "blue", "unirg")
    model = made["model"]
    assert model["modelFormat"] == {"name": "vLLM"}
    assert (model["runtime"], model["storageUri"]) == ("kserve-vllmserver", STORAGE)
    assert model["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "4"}
    assert model["resources"]["requests"]["cpu"] == "8"
    assert {"--tensor-parallel-size=4", "--enforce-eager", '--limit-mm-per-prompt={"image":4}'} <= {
        *model["args"]
    }
    assert made["nodeSelector"] == EVERYTHING.node_selector
    assert made["tolerations"] == [
        {"key": "pool", "operator": "Equal", "value": "serve", "effect": "NoExecute"}
    ]
    assert made["serviceAccountName"] == "reader"
    assert (made["minReplicas"], made["maxReplicas"]) == (2, 8)
    query = made["autoScaling"]["metrics"][0]["external"]["metric"]["query"]
    assert query == 'sum(vllm:num_requests_waiting{namespace="unirg",pod=~"cxr-blue-predictor-.*"})'
    annotations = isvc.service(SERVICE, made)["metadata"]["annotations"]
    assert annotations["serving.kserve.io/deploymentMode"] == "Standard"
    assert annotations["serving.kserve.io/autoscalerClass"] == "keda"


def test_a_model_answers_to_a_name_with_its_digest_and_to_the_plain_one() -> None:
    args = isvc.predictor(served(), STORAGE, "blue", "unirg")["model"]["args"]
    at = args.index("--served-model-name")
    assert args[at + 1 : at + 3] == ["unirg-cxr-abababababab", "unirg-cxr"]


def test_a_canary_scales_by_its_share_alone() -> None:
    made = isvc.canary(isvc.predictor(served(), STORAGE, "green", "unirg"), 25)
    assert made["trafficPercent"] == 25
    assert {"minReplicas", "maxReplicas", "autoScaling"} & made["predictor"].keys() == set()


def test_a_predictor_that_moves_is_scaled_by_the_pods_of_its_new_slot() -> None:
    before = isvc.predictor(served(), STORAGE, "blue", "unirg")
    assert isvc.moved(before, SERVICE, "green") == isvc.predictor(served(), STORAGE, "green", "unirg")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_replicas": 4}, "max_replicas = 4 needs prometheus"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas = 2 is less than min_replicas = 3"),
        ({"service": "Cxr"}, "service"),
        ({"service": "x" * 37}, "service"),
        ({"arguments": ["--a b"]}, "arguments"),
        ({"replicas": 2}, "unknown key replicas"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        config.load(InferenceServiceConfig, **wrong)
    assert told in str(caught.value)


def test_a_checkpoint_on_this_machine_is_refused_before_anything_starts(tmp_path: Path) -> None:
    store = str(tmp_path)
    with pytest.raises(ArtifactError, match="where a cluster cannot read it: train into a store on s3://"):
        serve(ServeConfig(cluster=InferenceServiceConfig()), make_checkpoint(store, 0), store)


def test_a_cluster_is_told_where_the_model_directory_lies(moto_s3: S3) -> None:
    model = make_checkpoint(f"s3://{moto_s3.bucket()}/store", 0)
    bucket, _, key = rollout.storage_uri(model).removeprefix("s3://").partition("/")
    listed = moto_s3.client().list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]
    assert [one["Key"] for one in listed] == [f"{key}/config.json"]


def test_a_checkpoint_that_has_changed_since_is_not_served(double: Place) -> None:
    endpoint = double.endpoint(0)
    changed = replace(endpoint, checkpoint_uri=make_checkpoint(double.store, 1).uri)
    with pytest.raises(ArtifactError, match="is another model than this endpoint's: serve it again"):
        changed.begin()
    assert double.kserve.services() == []


def test_the_artifact_names_the_model_as_the_cluster_does(double: Place) -> None:
    endpoint = double.endpoint()
    declared = open_endpoint(endpoint.served.uri)
    digest = make_checkpoint(double.store, 0).digest
    assert (declared.model_digest, declared.model_name) == (digest, f"unirg-cxr-{digest[:12]}")
    assert declared.restarts is False
    assert double.kserve.services() == []


# Beginning and waiting


def test_connecting_starts_the_service_waits_until_it_is_ready_and_leaves_it(place: Place) -> None:
    endpoint = place.endpoint()

    def connect() -> str:
        with endpoint.connect() as url:
            return url

    connected = Waiting(connect)
    until(lambda: place.told("not ready"))
    (made,) = place.kserve.services()
    model = make_checkpoint(place.store, 0)
    assert made["spec"]["predictor"]["model"]["storageUri"] == storage_uri(model)
    assert made["spec"]["predictor"]["annotations"][DIGEST] == model.digest
    place.kserve.ready(SERVICE)
    expected = f"http://cxr-blue-predictor.{place.api.namespace}.svc.cluster.local/v1"
    assert connected.end() == expected
    assert connect() == expected
    assert len(place.kserve.services()) == 1


def test_a_service_without_a_name_gets_the_model_s_own(place: Place) -> None:
    first, second = place.endpoint(0, service=""), place.endpoint(1, service="")
    first.begin()
    second.begin()
    assert {one["metadata"]["name"] for one in place.kserve.services()} == {
        rollout.name_of(first.served.uri),
        rollout.name_of(second.served.uri),
    }


def test_serving_again_changes_the_service_in_place(place: Place) -> None:
    place.up(place.endpoint())
    before = place.found()
    place.endpoint(gpus=2).begin()
    after = place.found()
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"]["predictor"]["name"] == before["spec"]["predictor"]["name"]
    assert "--tensor-parallel-size=2" in after["spec"]["predictor"]["model"]["args"]


def test_the_same_again_changes_nothing(place: Place) -> None:
    endpoint = place.up(place.endpoint())
    before = place.found()
    endpoint.begin()
    assert place.found()["spec"] == before["spec"]
    assert place.found()["metadata"]["generation"] == before["metadata"]["generation"]


def test_a_status_of_the_model_before_is_not_taken_for_this_one_s(place: Place) -> None:
    place.up(place.endpoint(0))
    second = place.endpoint(1, ready_timeout_s=0.2)
    second.begin()
    with pytest.raises(NotReady, match="KServe has not looked at it yet"):
        second.wait()
    place.kserve.ready(SERVICE)
    assert second.wait()


def test_pods_of_the_model_before_are_waited_for(place: Place) -> None:
    first, second = place.up(place.endpoint(0)), place.endpoint(1, ready_timeout_s=0.2)
    old = place.kserve.pod(SERVICE, "blue", first.model_digest, "old")
    place.kserve.pod(SERVICE, "blue", second.model_digest, "new")
    place.up(second)
    with pytest.raises(NotReady, match="1 pods of the model before it are still there"):
        second.wait()
    place.kserve.core.delete_namespaced_pod(old, place.api.namespace, grace_period_seconds=0)
    assert second.wait()


def test_a_timeout_says_what_was_seen_last(place: Place) -> None:
    endpoint = place.endpoint(ready_timeout_s=0.3)
    endpoint.begin()
    why = {"type": "PredictorReady", "status": "False", "reason": "MinimumReplicasUnavailable"}
    place.kserve.report(SERVICE, conditions=[why])
    place.kserve.pod(SERVICE, "blue", endpoint.model_digest, "one")
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/5 nodes"}
    place.kserve.pod_status("one", conditions=[unplaced])
    with pytest.raises(NotReady) as caught:
        endpoint.wait()
    assert "was not ready after 0.3 s" in str(caught.value)
    assert "PredictorReady is False (MinimumReplicasUnavailable)" in str(caught.value)
    assert "Pod one waits for a node (Unschedulable): 0/5 nodes" in str(caught.value)
    assert "raise cluster.ready_timeout_s" in str(caught.value)


@pytest.mark.parametrize(
    ("info", "told"),
    [
        (
            {"reason": "RuntimeNotRecognized", "message": "Waiting for runtime to become available"},
            "RuntimeNotRecognized: Waiting for runtime to become available",
        ),
        (
            {
                "reason": "ModelLoadFailed",
                "exitCode": 137,
                "location": "kserve-container",
                "message": "ANA",
            },
            "ModelLoadFailed, exit code 137, in kserve-container",
        ),
        (None, "BlockedByFailedLoad"),
    ],
)
def test_a_model_that_does_not_load_ends_the_wait_with_the_reason(
    place: Place, info: dict[str, Any] | None, told: str
) -> None:
    endpoint = place.endpoint()
    endpoint.begin()
    place.kserve.pod(SERVICE, "blue", endpoint.model_digest, "one")
    stuck = {"reason": "CrashLoopBackOff", "message": "back-off restarting"}
    init = {"name": "storage-initializer", "image": "x", "imageID": "x", "ready": False, "restartCount": 2}
    place.kserve.pod_status("one", initContainerStatuses=[init | {"state": {"waiting": stuck}}])
    model = {"transitionStatus": "BlockedByFailedLoad"} | ({"lastFailureInfo": info} if info else {})
    place.kserve.report(SERVICE, modelStatus=model)
    with pytest.raises(UserError) as caught:
        endpoint.wait()
    assert f"cannot serve {endpoint.model_name} ({told}; " in str(caught.value)
    assert "Pod one does not begin (CrashLoopBackOff): back-off restarting" in str(caught.value)
    assert "kubectl logs" in str(caught.value)
    assert "ANA" not in str(caught.value)  # a container's words, which may quote a report


def test_a_service_that_is_deleted_meanwhile_is_told(place: Place) -> None:
    endpoint = place.endpoint()
    endpoint.begin()
    waiting = Waiting(endpoint.wait)
    until(lambda: place.told("not ready"))
    place.kserve.delete(SERVICE)
    with pytest.raises(UserError, match="was taken out before it was ready"):
        waiting.end()


def test_a_service_that_is_being_deleted_is_waited_for_and_made_again(double: Place) -> None:
    endpoint = double.up(double.endpoint())
    thing = double.found()
    thing["metadata"]["finalizers"] = ["example.com/pods"]
    double.kserve.replace(thing)
    double.kserve.delete(SERVICE)
    again = Waiting(endpoint.begin)
    until(lambda: double.told("is being deleted"))
    thing = double.found()
    thing["metadata"]["finalizers"] = []
    double.kserve.replace(thing)
    assert again.end()["metadata"]["uid"] != thing["metadata"]["uid"]


def test_the_gateway_s_address_is_taken_where_it_is_asked_for(place: Place) -> None:
    endpoint = place.up(place.endpoint(reach="gateway", api_path="/openai/v1"))
    with endpoint.connect() as url:
        assert url == f"http://cxr-{place.api.namespace}.example.com/openai/v1"
    tried = place.endpoint(1)
    tried.begin(10)
    with pytest.raises(UserError, match="its gateway splits requests"), endpoint.connect():
        pass


def test_a_service_with_another_model_is_not_taken_for_this_one_s(place: Place) -> None:
    first = place.up(place.endpoint(0))
    with pytest.raises(UserError, match=f"serves {first.served.uri}"), place.endpoint(1).connect():
        pass
    assert isvc.artifact_of(place.found()["spec"]["predictor"]) == first.served.uri


# Canary, promotion, rolling back


def test_a_canary_is_tried_beside_the_stable_model_and_answers_at_an_address_of_its_own(place: Place) -> None:
    stable, tried = place.up(place.endpoint(0)), place.endpoint(1)
    tried.begin(10)
    place.kserve.ready(SERVICE, canaryStatuses=[{"name": "green", "ready": False, "trafficPercent": 10}])
    assert "is canary with 10% of the requests; the canary is not ready" in tried.status()
    place.kserve.ready(SERVICE)
    domain = f"{place.api.namespace}.svc.cluster.local/v1"
    with stable.connect() as old, tried.connect() as new:
        assert (old, new) == (f"http://cxr-blue-predictor.{domain}", f"http://cxr-green-predictor.{domain}")
    tried.begin(50)
    assert place.found()["spec"]["canary"][0]["trafficPercent"] == 50
    assert isvc.artifact_of(place.found()["spec"]["predictor"]) == stable.served.uri


def test_a_canary_that_does_not_load_is_told_and_the_stable_model_goes_on(place: Place) -> None:
    stable, tried = place.up(place.endpoint(0)), place.endpoint(1)
    tried.begin(10)
    failed = {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": {"reason": "ModelLoadFailed"}}
    canary = {"name": "green", "ready": False, "trafficPercent": 10, "modelStatus": failed}
    place.kserve.ready(SERVICE, canaryStatuses=[canary])
    with pytest.raises(UserError, match="ModelLoadFailed"):
        tried.wait()
    assert stable.wait()


def test_promotion_makes_the_canary_s_very_pods_the_stable_ones(place: Place) -> None:
    place.up(place.endpoint(0))
    tried = place.endpoint(1, min_replicas=2, max_replicas=2)
    tried.begin(10)
    place.kserve.ready(SERVICE)
    canary = place.found()["spec"]["canary"][0]["predictor"]
    tried.promote()
    spec = place.found()["spec"]
    assert "canary" not in spec
    assert {name: spec["predictor"][name] for name in canary} == canary
    assert spec["predictor"]["minReplicas"] == 2
    tried.promote()  # once more is nothing more
    assert place.found()["spec"] == spec


def test_rolling_back_a_canary_leaves_the_stable_model(place: Place) -> None:
    stable, tried = place.up(place.endpoint(0)), place.endpoint(1)
    before = place.found()["spec"]
    tried.begin(10)
    tried.roll_back()
    tried.roll_back()
    assert place.found()["spec"] == before
    assert "is stable" in stable.status()


def test_rolling_back_after_a_promotion_brings_back_the_model_before(place: Place) -> None:
    first, second = place.up(place.endpoint(0)), place.endpoint(1)
    second.begin(10)
    second.promote()
    second.roll_back()
    after = place.found()
    assert isvc.artifact_of(after["spec"]["predictor"]) == first.served.uri
    assert after["spec"]["predictor"]["annotations"][DIGEST] == first.model_digest
    assert annotation(after, PREVIOUS) == ""
    second.roll_back()  # it is out already
    assert place.found()["spec"] == after["spec"]
    with pytest.raises(UserError, match="had no model before this one"):
        first.roll_back()


def test_a_model_that_was_replaced_in_place_comes_back_too(place: Place) -> None:
    first, second = place.up(place.endpoint(0)), place.endpoint(1)
    before = place.found()["spec"]
    second.begin()
    assert json.loads(annotation(place.found(), PREVIOUS))["annotations"][ARTIFACT] == first.served.uri
    second.roll_back()
    assert place.found()["spec"] == before


def test_one_canary_is_decided_before_anything_else_is_tried(place: Place) -> None:
    stable, tried, third = place.up(place.endpoint(0)), place.endpoint(1), place.endpoint(2)
    with pytest.raises(UserError, match="already: there is nothing to try"):
        stable.begin(10)
    tried.begin(10)
    steps: list[Callable[[], object]] = [third.begin, lambda: third.begin(5), stable.roll_back, stable.delete]
    for step in steps:
        with pytest.raises(UserError, match=f"tries {tried.served.uri}: promote or roll back"):
            step()
    with pytest.raises(UserError, match="as a canary: promote it, or roll it back"):
        tried.begin()
    with pytest.raises(UserError, match="`unirg serve --canary` first"):
        third.promote()


def test_a_canary_needs_a_service_to_be_tried_in(place: Place) -> None:
    with pytest.raises(UserError, match="leave out --canary"):
        place.endpoint().begin(10)


# Scoring through it


def test_reports_are_accounted_to_the_model_that_wrote_them_and_to_no_other(double: Place) -> None:
    endpoint, cohort = double.endpoint(reach="gateway"), toy.make_cohort(double.store, 3)
    settings = ScoreConfig(splits=("zero_shot",))
    with (
        double.kserve.at_work(),
        vllm("unirg-cxr-000000000000", "unirg-cxr") as double.kserve.url,
        pytest.raises(EndpointGone, match=f"HTTP 404, model {endpoint.model_name}"),
    ):
        score(settings, cohort, endpoint, double.store)
    with vllm(endpoint.model_name, "unirg-cxr") as double.kserve.url:
        double.kserve.ready(SERVICE)
        made = score(settings, cohort, endpoint, double.store)
    assert made.manifest.counts["scored"] == 3
    assert made.manifest.inputs["model"].digest == endpoint.model_digest


# Deleting


def test_deleting_twice_is_deleting(double: Place) -> None:
    endpoint = double.up(double.endpoint())  # a real one waits for its garbage collector, which does not run
    endpoint.delete()
    assert double.kserve.services() == []
    endpoint.delete()


def test_deleting_a_canary_leaves_the_stable_model(place: Place) -> None:
    stable, tried = place.up(place.endpoint(0)), place.endpoint(1)
    tried.begin(10)
    tried.delete()
    assert "canary" not in place.found()["spec"]
    assert "is stable" in stable.status()


def test_a_service_that_has_another_model_by_now_is_left(place: Place) -> None:
    first, second = place.up(place.endpoint(0)), place.endpoint(1)
    second.begin()
    first.delete()
    assert isvc.artifact_of(place.found()["spec"]["predictor"]) == second.served.uri
    assert place.told("not this model: left as it is")


def test_a_service_of_somebody_else_is_left_alone(place: Place) -> None:
    foreign = isvc.service(SERVICE, isvc.predictor(served(), STORAGE, "blue", "unirg"))
    del foreign["metadata"]["labels"]
    place.kserve.create(foreign)
    endpoint = place.endpoint()
    steps: list[Callable[[], object]] = [endpoint.begin, endpoint.delete, endpoint.promote, endpoint.status]
    for step in steps:
        with pytest.raises(UserError, match="was not made by unirg: choose another"):
            step()
    assert "labels" not in place.found()["metadata"]


def test_the_end_of_a_pipeline_keeps_what_others_use(double: Place) -> None:
    kept, passing = double.endpoint(keep=True), double.endpoint(1, service="passing")
    kept.begin()
    passing.begin()
    kept.stop()
    passing.stop()
    assert [one["metadata"]["name"] for one in double.kserve.services()] == [SERVICE]


# When the API fails


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_what_fails_for_a_while_is_repeated(double: Place, status: int) -> None:
    assert double.server
    endpoint, tried = double.endpoint(0), double.endpoint(1)
    place = INFERENCE_SERVICE.path("unirg")
    ours = [f"GET {place}/{SERVICE}?", f"POST {place}?f", f"PUT {place}/{SERVICE}?f", f"DELETE {place}"]
    for match in ours:  # and not the controller's
        double.server.fail(match, status, times=3)
    double.up(endpoint)
    assert endpoint.wait()
    tried.begin(10)
    tried.promote()
    tried.delete()
    assert double.kserve.services() == []


def test_a_change_whose_answer_is_lost_is_made_once(double: Place) -> None:
    assert double.server
    stable, tried = double.endpoint(0), double.endpoint(1)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("POST", stable.begin),
        ("PUT", lambda: tried.begin(10)),
        ("PUT", tried.promote),
        ("PUT", tried.roll_back),
    ]
    for verb, step in steps:
        double.server.fail(f"{verb} /apis/serving", 1)
        step()
    assert isvc.artifact_of(double.found()["spec"]["predictor"]) == stable.served.uri
    assert len(double.kserve.services()) == 1
    double.server.fail("DELETE /apis/serving", 1)
    stable.delete()
    assert double.kserve.services() == []


def test_what_somebody_else_changed_meanwhile_is_kept(double: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    double.up(double.endpoint(0))
    tried, put = double.endpoint(1), Cluster.replace
    changed: list[object] = []

    def late(api: Cluster, kind: Any, thing: Any) -> Any:
        if not changed:
            other = double.found()
            other["metadata"]["annotations"]["team.example/owner"] = "radiology"
            double.kserve.replace(other)
            changed.append(other)
        return put(api, kind, thing)

    monkeypatch.setattr(Cluster, "replace", late)
    tried.begin(10)
    assert annotation(double.found(), "team.example/owner") == "radiology"
    assert isvc.artifact_of(isvc.tried(double.found()) or {}) == tried.served.uri


def test_clients_that_start_together_make_one_service(double: Place) -> None:
    assert double.server
    endpoint = double.endpoint()
    double.server.fail(f"GET /apis/{INFERENCE_SERVICE.api}", 503, times=4)  # so that all meet at its creation
    waiting = [Waiting(endpoint.begin) for _ in range(3)]
    assert {one.end()["metadata"]["uid"] for one in waiting} == {double.found()["metadata"]["uid"]}


def test_an_api_that_stays_away_is_told(double: Place) -> None:
    assert double.server
    double.api.patience_s = 0.05
    double.server.fail("GET", 503, times=1000)
    with pytest.raises(Unreachable, match="could not get InferenceService cxr"):
        double.endpoint().begin()


def test_readiness_does_not_need_the_right_to_see_pods(double: Place) -> None:
    assert double.server
    double.server.fail("/pods", 403, times=1000)
    assert double.up(double.endpoint()).wait()


# The audit


def test_each_change_of_what_is_served_is_recorded_once_also_one_whose_maker_was_killed(
    double: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = double.up(double.endpoint(0)), double.endpoint(1)

    def recorded() -> list[tuple[str, str, str]]:
        found = [one for one in journal.read(double.store) if one.action in ("promote", "rollback")]
        assert [one.subjects["change"] for one in found] == [str(number + 1) for number in range(len(found))]
        assert {one.subjects["endpoint"] for one in found} <= {second.served.uri[len(double.store) + 1 :]}
        names = {first.model_digest: "first", second.model_digest: "second", "": ""}
        return [(one.action, names[one.subjects["model"]], names[one.subjects["other"]]) for one in found]

    second.begin(10)
    second.begin(20)
    assert recorded() == []
    second.promote()
    second.promote()
    expected = [("promote", "second", "first")]
    assert recorded() == expected
    second.roll_back()
    second.roll_back()
    expected += [("rollback", "second", "first")]
    assert recorded() == expected
    second.begin(10)
    second.roll_back()
    expected += [("rollback", "second", "")]
    assert recorded() == expected
    with monkeypatch.context() as killed:
        killed.setattr(journal, "append", _die)
        with pytest.raises(KeyboardInterrupt):
            second.begin()
    assert recorded() == expected
    second.roll_back()
    expected += [("promote", "second", "first"), ("rollback", "second", "first")]
    assert recorded() == expected
    with monkeypatch.context() as killed:
        killed.setattr(journal, "append", _die)
        with pytest.raises(KeyboardInterrupt):
            second.begin()
    second.delete()
    assert recorded() == [*expected, ("promote", "second", "first")]
    assert double.kserve.services() == []


def _die(store: str, action: str, subjects: dict[str, str]) -> None:
    """Instead of writing an entry that is not there yet."""
    if journal.Log(store).with_key(journal.key_of(action, subjects)) is None:
        raise KeyboardInterrupt
