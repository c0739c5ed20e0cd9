"""A model on trial: what it may get wrong, when the trial ends, and what is said of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests import toy
from tests.scoring.stub import Answer, Stub, completion, status
from unirg.artifact import Artifact
from unirg.errors import UserError
from unirg.lifecycle import trial as trials
from unirg.lifecycle.trial import Trial, TrialConfig, trial
from unirg.scoring.archive import ScoreConfig
from unirg.serving.inference_service import InferenceServiceConfig, Served
from unirg.serving.rollout import InferenceServiceEndpoint

ASKING = ScoreConfig(max_tokens=16)
CONFIG = TrialConfig(requests=40, seconds=0.0, max_error_rate=0.1, timeout_s=5.0, splits=("test",))
"""4 of 40 may fail."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """24 studies: 15 in test, 9 in zero_shot."""
    return toy.make_cohort(str(tmp_path_factory.mktemp("trial") / "store"), 24)


def tried(stub: Stub, cohort: Artifact, config: TrialConfig = CONFIG) -> Trial:
    with stub.running():
        return trial(config, ASKING, cohort, stub, stub.url)


def first(count: int, otherwise: Callable[[dict[str, Any]], Answer]) -> Stub:
    """An endpoint that answers the first so many requests as it is told, and the rest well."""
    return Stub(lambda stub, request: otherwise(request) if len(stub.asked) <= count else completion(request))


def test_a_model_that_answers_passes_and_every_study_is_asked_about(cohort: Artifact) -> None:
    stub = Stub()
    found = tried(stub, cohort)
    assert found == Trial(40, 0, True, "0 of 40 requests failed")
    assert len(stub.answered) == 40
    # 15 studies: asked in turn, again and again.
    assert sorted(stub.asked.count(one) for one in set(stub.asked)) == [2] * 5 + [3] * 10
    assert stub.most_at_once <= trials.CONCURRENCY


def test_as_many_may_fail_as_the_share_allows_and_none_is_asked_twice(cohort: Artifact) -> None:
    stub = first(4, lambda _: status(500))
    assert tried(stub, cohort) == Trial(40, 4, True, "4 of 40 requests failed")
    assert len(stub.asked) == 40


def test_one_more_fails_it(cohort: Artifact) -> None:
    # The last ones, so that all are asked.
    stub = Stub(lambda stub, request: status(503) if len(stub.asked) > 35 else completion(request))
    found = tried(stub, cohort)
    assert (found.asked, found.failed, found.passed) == (40, 5, False)
    assert found.why == "5 of 40 requests failed, 5 x HTTP 503; 4 may"


def test_too_many_failures_end_it_at_once(cohort: Artifact) -> None:
    stub = Stub(lambda *_: status(500))
    config = CONFIG.model_copy(update={"requests": 400, "max_error_rate": 0.01, "seconds": 60.0})
    started = time.monotonic()
    found = tried(stub, cohort, config)
    assert time.monotonic() - started < 10
    assert not found.passed
    assert found.failed == 5
    assert len(stub.asked) == found.asked < 5 + trials.CONCURRENCY


def test_with_no_share_the_first_failure_ends_it(cohort: Artifact) -> None:
    found = tried(first(1, lambda _: status(500)), cohort, CONFIG.model_copy(update={"max_error_rate": 0.0}))
    assert not found.passed
    assert found.why.endswith("1 x HTTP 500; 0 may")


@pytest.mark.parametrize("seconds", [0.0, 2.0])
@pytest.mark.parametrize(
    "script",
    [lambda *_: status(404), lambda _, request: (200, {"X-Model-Digest": "e" * 64}, completion(request)[2])],  # type: ignore[index]
    ids=["404", "another digest"],
)
def test_where_another_model_answers_it_fails(cohort: Artifact, script: Any, seconds: float) -> None:
    stub = Stub(script)
    found = tried(stub, cohort, CONFIG.model_copy(update={"seconds": seconds}))
    assert not found.passed
    assert "another model, or none, answers" in found.why
    assert len(stub.asked) <= trials.CONCURRENCY


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda request: completion(request, ""), "empty completion"),
        (lambda request: completion(request, " \n"), "empty completion"),
        (lambda _: None, "the connection broke"),
        (lambda _: (200, {}, b"{}"), "an answer that is no completion"),
        (lambda _: status(400), "refused: HTTP 400"),
        (lambda _: status(429), "HTTP 429"),
    ],
)
def test_whatever_is_no_report_counts(cohort: Artifact, answer: Any, said: str) -> None:
    found = tried(Stub(lambda _, request: answer(request)), cohort)
    assert not found.passed
    assert f" x {said};" in found.why


def test_a_model_that_is_too_slow_fails(cohort: Artifact) -> None:
    config = CONFIG.model_copy(update={"timeout_s": 0.1, "requests": 4, "max_error_rate": 0.0})
    found = tried(Stub(delay_s=1.0), cohort, config)
    assert not found.passed
    assert "no answer in time" in found.why


def test_where_nobody_listens_it_fails(cohort: Artifact) -> None:
    stub = Stub()
    with stub.running():
        gone = stub.url
    found = trial(CONFIG, ASKING, cohort, stub, gone)
    assert not found.passed
    assert "ClientConnectorError" in found.why


def test_requests_are_spread_over_the_time(cohort: Artifact) -> None:
    times: list[float] = []

    def script(stub: Stub, request: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        return completion(request)

    config = CONFIG.model_copy(update={"requests": 10, "seconds": 2.0})
    started = time.monotonic()
    assert tried(Stub(script), cohort, config).passed
    assert time.monotonic() - started > 1.7
    # None before its time: one each fifth of a second.
    assert all(at - started >= 0.2 * number for number, at in enumerate(times))


def _always(answer: Answer, *_: Any) -> Answer:
    return answer


def test_no_word_of_a_report_or_an_endpoint_is_told(cohort: Artifact) -> None:
    secret = "The heart is enlarged in s10"
    told = json.dumps({"error": {"code": secret, "message": secret}}).encode()
    answers: list[Answer] = [(500, {}, told), (400, {}, told), (200, {}, told)]
    for answer in answers:
        found = tried(Stub(partial(_always, answer)), cohort)
        assert not found.passed
        assert "heart" not in found.why
    assert (
        tried(Stub(lambda _, request: completion(request, secret)), cohort).why == "0 of 40 requests failed"
    )


def test_a_cohort_without_studies_of_the_splits_is_told(cohort: Artifact) -> None:
    config = CONFIG.model_copy(update={"splits": ("validate", "train")})
    with pytest.raises(
        UserError, match=r"no study in validate, train to try the model with: set trial\.splits"
    ):
        tried(Stub(), cohort, config)


def test_a_cohort_that_cannot_be_read_is_told_in_a_line(cohort: Artifact, tmp_path: Path) -> None:
    own = toy.make_cohort(str(tmp_path / "own"), 24)
    for shard in (tmp_path / "own" / "shards").iterdir():
        shard.unlink()
    with pytest.raises(UserError):
        tried(Stub(), own)


# What Prometheus counts


@contextmanager
def prometheus(answer: Callable[[str], tuple[int, Any]]) -> Iterator[str]:
    """A Prometheus that answers queries so; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = answer(parse_qs(urlsplit(self.path).query)["query"][0])
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def total(count: float) -> tuple[int, Any]:
    return 200, {
        "status": "success",
        "data": {"resultType": "vector", "result": [{"value": [1, str(count)]}]},
    }


NOTHING = 200, {"status": "success", "data": {"resultType": "vector", "result": []}}


def seen(stub: Stub, cohort: Artifact, url: str) -> Trial:
    """Try a model of a cluster whose Prometheus is there."""
    settings = InferenceServiceConfig(service="cxr", prometheus=url)
    served = Served("s3://m/serve/1", "cxr", "unirg", stub.model_name, stub.model_digest, settings)
    endpoint = InferenceServiceEndpoint(served, "s3://m/sft/1")
    with stub.running():
        return trial(CONFIG, ASKING, cohort, endpoint, stub.url)


def test_what_the_users_saw_counts(cohort: Artifact) -> None:
    asked: list[str] = []

    def some(failures: float) -> Callable[[str], tuple[int, Any]]:
        def answer(query: str) -> tuple[int, Any]:
            asked.append(query)
            return total(failures if "status" in query else 1000.0)

        return answer

    with prometheus(some(100.0)) as url:
        found = seen(Stub(), cohort, url)
    assert found == Trial(40, 0, True, "0 of 40 requests failed, and Prometheus counts 100 of 1000")
    with prometheus(some(101.0)) as url:
        found = seen(Stub(), cohort, url)
    assert found == Trial(40, 0, False, "Prometheus counts 101 failures of 1000 requests; 10.0% may")
    assert all(query.startswith("sum(max_over_time(http_requests_total{pod=~") for query in asked)


def test_the_pods_of_the_canary_are_counted_and_no_others() -> None:
    asked: list[str] = []
    counted = [NOTHING]

    def answer(query: str) -> tuple[int, Any]:
        asked.append(query)
        return counted[-1]

    with prometheus(answer) as url:
        settings = InferenceServiceConfig(service="cxr", prometheus=url)
        served = Served("s3://m/serve/1", "cxr", "unirg", "name", "d" * 64, settings)
        endpoint = InferenceServiceEndpoint(served, "s3://m/sft/1")
        host = "http://cxr-green-predictor.wards.svc.cluster.local/v1"
        with pytest.raises(UserError, match=r"counts no request of the pods cxr-green-predictor-\*"):
            trials._users(endpoint, host, 660)
        counted.append(total(3.0))
        assert trials._users(endpoint, host, 660) == (3.0, 3.0)
        quiet = replace(served, config=settings.model_copy(update={"prometheus": ""}))
        assert trials._users(InferenceServiceEndpoint(quiet, ""), host, 660) is None
    pods = 'pod=~"cxr-green-predictor-.*",namespace="wards"'
    assert asked[1:] == [
        f"sum(max_over_time(http_requests_total{{{pods}}}[660s]))",
        f'sum(max_over_time(http_requests_total{{{pods},status=~"5.*"}}[660s]))',
    ]


@pytest.mark.parametrize(
    "answer",
    [
        (503, b"starting"),
        (200, b"<html>"),
        (200, {"status": "error"}),
        (200, {"data": {"result": [{}]}}),
        (200, {"data": {"result": [{"value": [1, "many"]}]}}),
        (200, {"data": {"result": [{"value": [1, "NaN"]}]}}),
    ],
)
def test_a_prometheus_that_does_not_say_is_told_with_the_remedy(cohort: Artifact, answer: Any) -> None:
    with (
        prometheus(lambda _: answer) as url,
        pytest.raises(UserError, match=f"Prometheus at {url} does not say how the canary does .*: put it"),
    ):
        seen(Stub(), cohort, url)


def test_no_prometheus_is_told(cohort: Artifact) -> None:
    with prometheus(lambda _: NOTHING) as url:
        pass
    with pytest.raises(UserError, match=r"leave cluster\.prometheus empty"):
        seen(Stub(), cohort, url)
