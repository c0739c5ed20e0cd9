from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests import toy
from tests.scoring.stub import DIGEST, Answer, Stub, completion, question, seen, status
from tests.waiting import until
from unirg import prompts
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.scoring.archive import FAILURES, PREDICTIONS, ScoreConfig, score

CONFIG = ScoreConfig(max_tokens=16, patience_s=2.0, timeout_s=5.0, retries=2, segment_studies=4)

# Scores with a stub that another process runs: what a test may kill.
PROGRAM = """
import contextlib, sys
from unirg.artifact import open_artifact
from unirg.scoring.archive import ScoreConfig, score

class Endpoint:
    model_name, model_digest, restarts = "stub", sys.argv[4], False
    connect = lambda self: contextlib.nullcontext(sys.argv[3])

settings = ScoreConfig(max_tokens=16, concurrency=4, patience_s=2.0, segment_studies=4)
score(settings, open_artifact(sys.argv[1]), Endpoint(), sys.argv[2])
"""


def table(scored: Artifact, name: str) -> list[dict[str, Any]]:
    return pq.read_table(scored.path(name)).to_pylist()


def start(cohort: Artifact, store: str, stub: Stub) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, cohort.uri, store, stub.url, DIGEST]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def undisturbed(cohort: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return score(CONFIG, cohort, Stub(), str(tmp_path_factory.mktemp("undisturbed")))


def test_every_study_has_one_prediction(cohort: Artifact, undisturbed: Artifact) -> None:
    rows = table(undisturbed, "predictions/000000.parquet")
    studies = Cohort.open(cohort).studies()
    assert [row["study_id"] for row in rows] == [study.study_id for study in studies]
    assert undisturbed.manifest.counts == {"studies": 24, "scored": 24, "failed": 0, "truncated": 0}
    for row, study in zip(rows, studies, strict=True):
        assert (row["patient_id"], row["split"]) == (study.patient_id, study.split)
        assert row["sections"] == prompts.sections(study)
        assert (row["with_prior"], row["finish_reason"], row["completion_tokens"]) == (False, "stop", 5)
    assert len({row["text"] for row in rows}) == 24
    assert pq.read_schema(undisturbed.path("predictions/000000.parquet")).equals(PREDICTIONS)
    assert pq.read_schema(undisturbed.path("failures.parquet")).equals(FAILURES)
    assert len(table(undisturbed, "logs/latency.parquet")) == 24


def test_a_second_run_reads_and_connects_to_nothing(cohort: Artifact, store: str) -> None:
    first = score(CONFIG, cohort, Stub(), store)
    again = Stub()
    assert score(CONFIG, cohort, again, store).digest == first.digest
    assert again.connects == 0


def test_another_model_is_scored_anew_beside_the_old(cohort: Artifact, store: str) -> None:
    first = score(CONFIG, cohort, Stub(), store)
    other = Stub(model_digest="e" * 64, script=lambda stub, request: (200, {}, completion(request)[2]))  # type: ignore[index]
    second = score(CONFIG, cohort, other, store)
    assert second.uri != first.uri
    assert len(other.asked) == 24


@pytest.mark.parametrize("concurrency", [1, 5, 64])
def test_the_digest_does_not_depend_on_concurrency(
    cohort: Artifact, store: str, undisturbed: Artifact, concurrency: int
) -> None:
    stub = Stub(delay_s=0.01)
    scored = score(CONFIG.model_copy(update={"concurrency": concurrency}), cohort, stub, store)
    assert scored.digest == undisturbed.digest
    assert stub.most_at_once <= concurrency


@pytest.mark.parametrize("seed", range(4))
def test_a_storm_of_failures_changes_nothing_in_the_result(
    cohort: Artifact, store: str, undisturbed: Artifact, seed: int
) -> None:
    chance = random.Random(seed)
    faults: list[Answer] = [status(503), status(429, Retry_After="0.1"), status(502), None]

    def script(stub: Stub, request: dict[str, Any]) -> Answer:
        return chance.choice(faults) if chance.random() < 0.4 else completion(request)

    stub = Stub(script)
    patient = CONFIG.model_copy(update={"retries": 20})  # the storm hits at random, so one study often
    assert score(patient, cohort, stub, store).digest == undisturbed.digest
    assert len(stub.asked) > 24
    assert len(stub.answered) == 24


@pytest.mark.parametrize("truncated", ["keep", "fail"])
def test_refused_empty_and_truncated_completions_are_told_apart(
    cohort: Artifact, store: str, truncated: str
) -> None:
    kinds: dict[str, int] = {}

    def script(stub: Stub, request: dict[str, Any]) -> Answer:
        kind = kinds.setdefault(question(request), len(kinds)) % 4
        return [
            completion(request),
            completion(request, finish_reason="length"),
            completion(request, text=" "),
            (400, {}, b'{"error": {"code": "context_length"}}'),
        ][kind]

    settings = CONFIG.model_copy(update={"truncated": truncated})
    scored = score(settings, cohort, Stub(script), store)
    kept = truncated == "keep"
    assert scored.manifest.counts == {
        **{"studies": 24, "truncated": 6},
        **({"scored": 12, "failed": 12} if kept else {"scored": 6, "failed": 18}),
    }
    failures = table(scored, "failures.parquet")
    reasons = [failure["reason"] for failure in failures]
    cut = [] if kept else ["truncated at 16 tokens"] * 6
    assert sorted(reasons) == ["empty completion"] * 6 + ["refused: HTTP 400 context_length"] * 6 + cut
    assert {failure["attempts"] for failure in failures} == {1}
    done = {row["study_id"] for row in table(scored, "predictions/000000.parquet")}
    assert done | {failure["study_id"] for failure in failures} == {f"s{n:05d}" for n in range(24)}


def test_if_every_completion_is_empty_that_is_a_result(cohort: Artifact, store: str) -> None:
    stub = Stub(lambda stub, request: completion(request, text=""))
    assert score(CONFIG, cohort, stub, store).manifest.counts["failed"] == 24


def test_if_nothing_can_be_scored_nothing_is_committed_and_the_next_run_begins_anew(
    cohort: Artifact, store: str, undisturbed: Artifact
) -> None:
    broken = Stub(lambda stub, request: status(500))
    with pytest.raises(UserError, match="none of 24 studies was scored; 24 failed with: HTTP 500"):
        score(CONFIG.model_copy(update={"retries": 0}), cohort, broken, store)
    assert score(CONFIG, cohort, Stub(), store).digest == undisturbed.digest


def test_an_endpoint_that_dies_midway_ends_the_run_and_the_next_one_asks_for_the_rest(
    cohort: Artifact, store: str, undisturbed: Artifact
) -> None:
    def dies(stub: Stub, request: dict[str, Any]) -> Answer:
        if len(stub.answered) < 10:
            return completion(request)
        stub.close()
        return None

    dying = Stub(dies)
    settings = CONFIG.model_copy(update={"concurrency": 3, "patience_s": 0.5})
    with pytest.raises(UserError, match="finished studies are kept"):
        score(settings, cohort, dying, store)
    healthy = Stub()
    assert score(settings, cohort, healthy, store).digest == undisturbed.digest
    assert len(healthy.asked) == 14
    assert not set(healthy.asked) & set(dying.answered)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_goes_on_without_repeating_what_is_finished(
    cohort: Artifact, store: str, undisturbed: Artifact, seed: int
) -> None:
    stub = Stub(delay_s=0.02)
    with stub.running():
        point = random.Random(seed).randrange(1, 20)
        run = start(cohort, store, stub)
        until(lambda: len(stub.answered) >= point or run.poll() is not None)
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()
        before = len(stub.answered)
        assert not list(Path(store).glob("score/*"))
        second = start(cohort, store, stub)
        _, told = second.communicate()
        assert second.returncode == 0, told.decode()
        # What was in flight, answered or not, may be asked again, and a segment; nothing else.
        assert 24 - before <= len(stub.answered) - before <= 24 - before + 2 * 4 + 4
    scored = score(CONFIG, cohort, Stub(), store)
    assert scored.digest == undisturbed.digest


@pytest.mark.parametrize(
    ("told_to", "code", "said"),
    [(signal.SIGINT, 1, b"KeyboardInterrupt"), (signal.SIGTERM, 75, b"finished studies are kept")],
)
def test_a_run_that_is_told_to_end_keeps_what_is_finished(
    cohort: Artifact, store: str, undisturbed: Artifact, told_to: int, code: int, said: bytes
) -> None:
    stub = Stub(delay_s=0.1)
    with stub.running():
        run = start(cohort, store, stub)
        until(lambda: len(stub.answered) >= 6)
        run.send_signal(told_to)
        _, told = run.communicate(timeout=20)
    assert said in told
    assert run.returncode in (code, -told_to)
    rest = Stub()
    assert score(CONFIG, cohort, rest, store).digest == undisturbed.digest
    assert len(rest.asked) <= 24 - 6 + 4


def test_sampling_gives_each_study_a_seed_of_its_own_and_greedy_gives_none(
    cohort: Artifact, store: str
) -> None:
    asked: list[dict[str, Any]] = []

    def script(stub: Stub, request: dict[str, Any]) -> Answer:
        asked.append(request)
        return completion(request)

    score(CONFIG.model_copy(update={"temperature": 0.7, "seed": 3}), cohort, Stub(script), store)
    assert len({request["seed"] for request in asked}) == 24
    asked.clear()
    score(CONFIG, cohort, Stub(script), store)
    assert {(request["temperature"], request.get("seed"), request["max_tokens"]) for request in asked} == {
        (0.0, None, 16)
    }


def test_permuted_images_and_priors_change_what_is_asked(
    cohort: Artifact, store: str, undisturbed: Artifact
) -> None:
    plain = {row["study_id"]: row["text"] for row in table(undisturbed, "predictions/000000.parquet")}
    permuted = score(CONFIG.model_copy(update={"permute_images": 1}), cohort, Stub(), store)
    assert all(row["text"] != plain[row["study_id"]] for row in table(permuted, "predictions/000000.parquet"))
    longitudinal = score(CONFIG.model_copy(update={"with_priors": True}), cohort, Stub(), store)
    with_prior = {
        row["study_id"] for row in table(longitudinal, "predictions/000000.parquet") if row["with_prior"]
    }
    assert with_prior == {f"s{number:05d}" for number in range(2, 24, 3)}


def test_a_cohort_without_the_splits_is_refused(cohort: Artifact, store: str) -> None:
    with pytest.raises(UserError, match="no study in validate"):
        score(CONFIG.model_copy(update={"splits": ("validate",)}), cohort, Stub(), store)


def test_a_disk_that_takes_no_more_is_told_and_nothing_half_written_is_left(
    cohort: Artifact, store: str, undisturbed: Artifact
) -> None:
    program = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))\n" + PROGRAM
    )
    stub = Stub()
    with stub.running():
        command = [sys.executable, "-c", program, cohort.uri, store, stub.url, DIGEST]
        ended = subprocess.run(command, capture_output=True, check=False, text=True)
    assert ended.returncode != 0
    assert "file too large: free space" in ended.stderr
    assert not list(Path(store).rglob("ledger/*/[0-9]*"))
    assert score(CONFIG, cohort, Stub(), store).digest == undisturbed.digest


def test_no_text_of_a_patient_is_told_while_scoring(
    cohort: Artifact, store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    stub = Stub(lambda stub, request: completion(request) if seen(stub, request) > 1 else status(500))
    scored = score(CONFIG, cohort, stub, store)
    told = "".join(capfd.readouterr()) + json.dumps(scored.manifest.model_dump())
    assert "24 studies" in told
    for study in Cohort.open(cohort).studies():
        assert study.findings
        assert study.findings[:40] not in told
        assert study.patient_id not in told
    assert "Report " not in told


@pytest.mark.timeout(600)
def test_the_real_server_gives_the_same_predictions_after_kill_9_of_its_user(
    cohort: Artifact, tmp_path: Path
) -> None:
    from unirg.serving.endpoint import ServeConfig, open_endpoint, serve

    program = (
        "import sys\n"
        "from unirg.artifact import open_artifact\n"
        "from unirg.scoring.archive import ScoreConfig, score\n"
        "from unirg.serving.endpoint import open_endpoint\n"
        "settings = ScoreConfig(max_tokens=48, truncated='keep', concurrency=4,\n"
        "    with_priors=True, segment_studies=5)\n"
        "score(settings, open_artifact(sys.argv[1]), open_endpoint(sys.argv[2]), sys.argv[3])\n"
    )
    store = str(tmp_path / "store")
    served = serve(ServeConfig(max_batch=3), toy.make_checkpoint(store), store)
    settings = ScoreConfig(max_tokens=48, truncated="keep", with_priors=True)
    whole = score(settings, cohort, open_endpoint(served), str(tmp_path / "undisturbed"))
    assert whole.manifest.counts["scored"] == 24

    run = subprocess.Popen([sys.executable, "-c", program, cohort.uri, served.uri, store])
    until(lambda: list(Path(store).glob(".work/score-*/ledger/000000/*.parquet")), 120)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    resumed = score(settings, cohort, open_endpoint(served), store)
    assert resumed.digest == whole.digest
