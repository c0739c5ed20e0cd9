"""TrainJobs: made once, found again, watched to their end, and told when they fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.controller import Controller
from tests.kubernetes import Server
from unirg import cluster
from unirg.cluster import Cluster
from unirg.errors import UserError
from unirg.objects import ARTIFACT
from unirg.training import launch, trainjob
from unirg.training.trainjob import TRAINJOB, TrainJobConfig

ROOT = Path(__file__).parents[2]
URI = "s3://unirg/store/sft/0123456789abcdef"
NAME = trainjob.name_of("sft", URI)
COMMAND = ["python", "-m", "unirg.training", "sft", "--store", "s3://unirg/store"]
SETTINGS = TrainJobConfig(image="registry.example/unirg-trainer:1", processes_per_node=2, gpus_per_node=2)
REAL = "UNIRG_TEST_KUBECONFIG"
"""Names an API server with Trainer's definitions and no controllers; these tests then run there too."""


def soon(true: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.01)


@dataclass
class Place:
    """An API server: ours in it, and the test as its controller."""

    api: Cluster
    controller: Controller
    server: Server | None = None
    lines: list[str] = field(default_factory=list)

    def train(self, config: TrainJobConfig = SETTINGS, uri: str = URI) -> None:
        launch.train_job(config, 2, "sft", uri, COMMAND, self.api, self.lines.append)

    def begin(self, config: TrainJobConfig = SETTINGS, uri: str = URI) -> Launched:
        return Launched(self, config, uri)

    def told(self, text: str) -> bool:
        return any(text in line for line in self.lines)


class Launched(threading.Thread):
    """A launcher under way."""

    def __init__(self, place: Place, config: TrainJobConfig, uri: str) -> None:
        super().__init__(daemon=True)
        self.place, self.config, self.uri = place, config, uri
        self.error: BaseException | None = None
        before = len(place.lines)
        self.start()
        soon(lambda: place.lines[before:] or self.error)

    def run(self) -> None:
        try:
            self.place.train(self.config, self.uri)
        except BaseException as error:
            self.error = error

    def end(self) -> BaseException | None:
        self.join(20)
        assert not self.is_alive(), self.place.lines
        return self.error


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "POLL_S", 0.02)


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Place]:
    with Server().running() as server:
        yield at(server.kubeconfig(tmp_path / "config"), "unirg", server)


def at(kubeconfig: Path, namespace: str, server: Server | None = None) -> Place:
    api = cluster.connect(namespace, kubeconfig=str(kubeconfig))
    api.pause_s, api.patience_s = 0.01, 5
    return Place(api, Controller(kubeconfig, namespace), server)


@pytest.fixture(params=["double", "real"])
def place(request: pytest.FixtureRequest) -> Place:
    """The double, and the real API server if there is one; a real one keeps the namespaces."""
    if request.param == "double":
        return request.getfixturevalue("double")
    if REAL not in os.environ:
        pytest.skip(f"no real API server: {REAL} names none")
    namespace = f"unirg-test-{uuid.uuid4().hex[:12]}"
    made = at(Path(os.environ[REAL]), namespace)
    made.controller.core.create_namespace({"metadata": {"name": namespace}})
    return made


def test_a_job_is_made_waits_in_its_queue_and_completes(place: Place) -> None:
    running = place.begin()
    (made,) = place.controller.jobs()
    assert made["metadata"]["name"] == NAME
    assert made["metadata"]["annotations"][ARTIFACT] == URI
    assert place.api.get(trainjob.RUNTIME, made["spec"]["runtimeRef"]["name"])
    place.controller.condition(NAME, "Suspended")
    soon(lambda: place.told("suspended, waiting for its turn"))
    place.controller.condition(NAME, "Suspended", "False", "Resumed")
    soon(lambda: place.told("admitted"))
    place.controller.condition(NAME, "Complete")
    assert running.end() is None


def test_a_second_launcher_goes_on_with_the_job_of_the_first(place: Place) -> None:
    first, second = place.begin(), place.begin(SETTINGS.model_copy(update={"image": "another:2"}))
    assert place.told("found, going on with it")
    assert len(place.controller.jobs()) == 1
    place.controller.condition(NAME, "Complete")
    assert (first.end(), second.end()) == (None, None)


def test_the_same_training_into_another_store_is_another_job(place: Place) -> None:
    other = "s3://unirg/another/sft/0123456789abcdef"
    running = [place.begin(), place.begin(uri=other)]
    made = {
        one["metadata"]["annotations"][ARTIFACT]: one["metadata"]["name"] for one in place.controller.jobs()
    }
    assert made.keys() == {URI, other}
    for name in made.values():
        place.controller.condition(name, "Complete")
    assert [one.end() for one in running] == [None, None]


@pytest.mark.parametrize("ended", ["Failed", "Complete"])
def test_a_job_that_has_ended_is_replaced(place: Place, ended: str) -> None:
    first = place.begin()
    place.controller.condition(NAME, ended)
    first.end()
    (old,) = place.controller.jobs()
    second = place.begin()
    soon(lambda: place.told(f"{ended.lower()}; a new one takes its place"))
    if not place.server:  # a real one waits for its garbage collector, which does not run
        soon(lambda: "deletionTimestamp" in place.controller.jobs()[0]["metadata"])
        place.controller.finalizers(NAME)
    soon(lambda: [one["metadata"]["uid"] for one in place.controller.jobs()] != [old["metadata"]["uid"]])
    soon(lambda: place.controller.jobs())
    place.controller.condition(NAME, "Complete")
    assert second.end() is None


def test_a_job_that_is_being_deleted_is_waited_for(place: Place) -> None:
    place.api.create(TRAINJOB, trainjob.job(SETTINGS, "sft", URI, COMMAND))
    place.controller.finalizers(NAME, "example.com/pods")
    place.controller.delete(NAME)
    running = place.begin()
    assert place.told("is being deleted; a new one takes its place")
    place.controller.finalizers(NAME)
    soon(lambda: place.told("created"))
    place.controller.condition(NAME, "Complete")
    assert running.end() is None


def test_a_job_that_someone_deletes_is_told(place: Place) -> None:
    running = place.begin()
    place.controller.delete(NAME)
    error = running.end()
    assert isinstance(error, UserError)
    assert "was deleted before its end" in str(error)


def test_a_job_of_another_training_is_left_alone(place: Place) -> None:
    other = trainjob.job(SETTINGS, "sft", URI, COMMAND)
    other["metadata"]["annotations"][ARTIFACT] = "another"
    place.api.create(TRAINJOB, other)
    with pytest.raises(UserError, match="makes another, not s3://unirg/store/sft"):
        place.train()
    assert len(place.controller.jobs()) == 1


def test_a_failure_without_pods_gives_the_cluster_s_reason(place: Place) -> None:
    running = place.begin()
    place.controller.condition(NAME, "Failed", reason="DeadlineExceeded")
    error = running.end()
    assert isinstance(error, launch.LaunchError)
    assert "(DeadlineExceeded)" in str(error)
    assert "raise deadline_s" in str(error)


def test_launchers_that_start_together_make_one_job(double: Place) -> None:
    assert double.server
    double.server.fail(f"GET /apis/{TRAINJOB.api}", 503, times=4)  # so that all meet at its creation
    launchers = [double.begin() for _ in range(3)]
    assert len(double.controller.jobs()) == 1
    double.controller.condition(NAME, "Complete")
    assert [one.end() for one in launchers] == [None, None, None]
    assert sum(": created" in line for line in double.lines) == 1


def test_a_creation_whose_answer_is_lost_is_found(double: Place) -> None:
    assert double.server
    double.server.fail("trainjobs?fieldValidation", 1)
    running = double.begin()
    assert len(double.controller.jobs()) == 1
    double.controller.condition(NAME, "Complete")
    assert running.end() is None


def test_the_first_rank_s_log_is_shown_through_breaks_and_restarts(double: Place) -> None:
    server, controller = double.server, double.controller
    assert server
    running = double.begin()
    first = controller.pod(NAME, name="first")
    controller.pod(NAME, rank=1)
    controller.state(first, "Running", {"running": {}})
    server.log(first, "sft: 1 of 9 steps")
    soon(lambda: double.told("1 of 9"))
    server.cut()
    server.log(first, "sft: 2 of 9 steps")
    server.log(f"{NAME}-node-0-1", "another rank's words")
    soon(lambda: double.told("2 of 9"))
    controller.state(first, "Failed", {"terminated": {"exitCode": 1}})
    controller.core.delete_namespaced_pod(first, "unirg")
    second = controller.pod(NAME, name="second")
    controller.state(second, "Running", {"running": {}})
    server.log(second, "sft: going on at 2 of 9 steps")
    soon(lambda: double.told("going on at 2"))
    server.log(second, "sft: 9 steps in 3 s")
    controller.state(second, "Succeeded", {"terminated": {"exitCode": 0}})
    controller.condition(NAME, "Complete")
    assert running.end() is None
    shown = [line for line in double.lines if not line.startswith(f"TrainJob {NAME} in namespace")]
    assert shown == [
        "sft: 1 of 9 steps",
        "sft: 2 of 9 steps",
        f"TrainJob {NAME}: begins again in Pod second",
        "sft: going on at 2 of 9 steps",
        "sft: 9 steps in 3 s",
    ]


def test_what_a_pod_waits_for_is_told(double: Place) -> None:
    controller = double.controller
    running = double.begin()
    unplaced = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/5 nodes"}
    ]
    controller.state(controller.pod(NAME), "Pending", {"waiting": {}}, conditions=unplaced)
    missing = {"reason": "ErrImagePull", "message": "not found"}
    controller.state(controller.pod(NAME, 1), "Pending", {"waiting": missing})
    for turn in range(2):
        controller.condition(NAME, "Suspended", "False", f"Turn{turn}")
        soon(lambda: double.told("Pod"))
    assert sum("waits for a node (Unschedulable): 0/5 nodes" in line for line in double.lines) == 1
    assert sum("does not begin (ErrImagePull): not found" in line for line in double.lines) == 1
    controller.condition(NAME, "Complete")
    assert running.end() is None


def test_training_goes_on_where_its_log_may_not_be_read(double: Place) -> None:
    assert double.server
    double.server.fail("/pods", 403, times=1000)
    running = double.begin()
    soon(lambda: double.told("its log is not shown: cannot list Pods"))
    double.controller.condition(NAME, "Complete")
    assert running.end() is None


LAUNCHER = """
from tests.training import test_launch_trainjob as test
from unirg.training import launch
launch.POLL_S = 0.02
launch.train_job(test.SETTINGS, 2, "sft", test.URI, test.COMMAND)
"""


def test_a_launcher_that_is_killed_is_replaced_by_one_that_finds_the_job(
    double: Place, tmp_path: Path
) -> None:
    server, controller = double.server, double.controller
    assert server
    killed = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        cwd=ROOT,
        env=os.environ | {"KUBECONFIG": str(tmp_path / "config"), "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert killed.stderr is not None
    assert killed.stderr.readline() == f"TrainJob {NAME} in namespace unirg: created\n"
    pod = controller.pod(NAME)
    controller.state(pod, "Running", {"running": {}})
    server.log(pod, *(f"sft: {number} of 999 steps" for number in range(launch.TAIL + 5)))
    assert killed.stderr.readline() == "sft: 0 of 999 steps\n"
    killed.kill()
    killed.communicate()
    running = double.begin()
    soon(lambda: double.told(f"sft: {launch.TAIL + 4} of 999"))
    assert double.lines[:2] == [
        f"TrainJob {NAME} in namespace unirg: found, going on with it",
        "sft: 5 of 999 steps",
    ]
    controller.state(pod, "Succeeded", {"terminated": {"exitCode": 0}})
    controller.condition(NAME, "Complete")
    assert running.end() is None
    assert server.count("trainjobs?fieldValidation") == 1


@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_an_interrupted_launcher_leaves_or_cancels_the_job(
    double: Place, cancels: bool, number: signal.Signals, raised: type[BaseException]
) -> None:
    server = double.server
    assert server

    def interrupt() -> None:
        soon(lambda: server.count("watch=true"))
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(raised) as caught:
        double.train(SETTINGS.model_copy(update={"cancel_on_interrupt": cancels}))
    thread.join()
    if number == signal.SIGTERM:
        assert caught.value.args == (os.EX_TEMPFAIL,)
    assert len(double.controller.jobs()) == (0 if cancels else 1)
    assert double.told("cancelling" if cancels else f"kubectl delete trainjob {NAME} -n unirg")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_as_many_processes_as_the_training_says() -> None:
    with pytest.raises(UserError, match="processes = 16, but nodes = 1 with processes_per_node = 2 are 2"):
        launch.train_job(SETTINGS, 16, "sft", URI, COMMAND)
