"""A model on trial: real studies are asked of the endpoint that would be its, and what fails is counted.

Each request is sent once, with no second chance that would hide a failure, over the time of the trial. Where
Prometheus scrapes the endpoint, what its users saw meanwhile counts the same. Too many failures of either
end the trial at once; what is said of them holds no text and no id.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import urlencode, urlsplit

from pydantic import Field

from unirg import prompt_recipes, telemetry
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.config import Config
from unirg.errors import UserError
from unirg.scoring import questions
from unirg.scoring.archive import Endpoint, ScoreConfig
from unirg.scoring.client import Answerless, ChatClient, EndpointGone
from unirg.scoring.remote import key_for
from unirg.serving.rollout import InferenceServiceEndpoint
from unirg.study import Split

CONCURRENCY = 8
PROMETHEUS_S = 10.0


class TrialConfig(Config):
    """How a model is tried, and what it may get wrong."""

    percent: int = Field(default=10, ge=1, le=50)
    """Share of the users' requests that a canary gets."""
    requests: int = Field(default=200, ge=1)
    """Requests of ours; studies are asked again where the cohort has fewer."""
    seconds: float = Field(default=600.0, ge=0)
    """Over which they are spread."""
    max_error_rate: float = Field(default=0.01, ge=0, lt=1)
    """Share of them, and of the users', that may fail."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds that one answer may take."""
    splits: tuple[Split, ...] = ("validate", "test")
    """What is asked about; nobody's report is compared."""


@dataclass(frozen=True)
class Trial:
    """What came of it."""

    asked: int
    failed: int
    passed: bool
    why: str
    """For a person."""


@telemetry.verb("trial")
def trial(
    config: TrialConfig, asking: ScoreConfig, cohort: Artifact, endpoint: Endpoint, base_url: str
) -> Trial:
    """Ask a model by itself, at a URL where no other answers.

    Args:
        asking: with what prompt and settings, as when it was scored.

    Raises:
        UserError: the cohort has no study of these splits, or Prometheus cannot be asked.
    """
    started = time.monotonic()
    allowed = math.floor(config.max_error_rate * config.requests + 1e-9)  # 0.29 of 100 are 29
    reasons: Counter[str] = Counter()
    asked, gone = 0, False

    def over() -> bool:
        return gone or sum(reasons.values()) > allowed

    async def all_of_them() -> None:
        bodies = _bodies(config, asking, Cohort.open(cohort))
        client = ChatClient(
            base_url,
            endpoint.model_name,
            endpoint.model_digest,
            connections=CONCURRENCY,
            timeout_s=config.timeout_s,
            key=key_for(base_url),
        )
        room = asyncio.Semaphore(CONCURRENCY)

        async def one(body: bytes) -> None:
            nonlocal asked, gone
            async with room:
                if over():
                    return
                asked += 1
                try:
                    await client.ask(body)
                except Answerless as error:
                    reasons[error.why] += 1
                except EndpointGone:  # one is enough: it is not this model that answers
                    reasons["another model, or none, answers"] += 1
                    gone = True

        async with client, asyncio.TaskGroup() as group:
            for number, body in enumerate(bodies):
                await asyncio.sleep(max(0.0, number * config.seconds / config.requests - _since(started)))
                async with room:  # no more bodies are made than are asked
                    pass
                if over():
                    break
                group.create_task(one(body))

    try:
        asyncio.run(all_of_them())
    except ExceptionGroup as several:  # the group's word for what hinders the making of a request
        raise several.exceptions[0] from None
    failed = sum(reasons.values())
    told = "".join(f", {count} x {why}" for why, count in reasons.most_common(3))
    if over():
        return Trial(asked, failed, False, f"{failed} of {asked} requests failed{told}; {allowed} may")
    users = _users(endpoint, base_url, math.ceil(_since(started)) + 60)
    if users and users[1] > config.max_error_rate * users[0]:
        share = f"Prometheus counts {users[1]:.0f} failures of {users[0]:.0f} requests"
        return Trial(asked, failed, False, f"{share}; {config.max_error_rate:.1%} may")
    seen = f", and Prometheus counts {users[1]:.0f} of {users[0]:.0f}" if users else ""
    return Trial(asked, failed, True, f"{failed} of {asked} requests failed{seen}")


def _since(started: float) -> float:
    return time.monotonic() - started


def _bodies(config: TrialConfig, asking: ScoreConfig, cohort: Cohort) -> Iterator[bytes]:
    """As many requests as are wanted, of the cohort's first studies in turn."""
    how = questions.Asking(prompt_recipes.load(asking.prompt), asking.with_priors)
    asked = questions.ranges(cohort, config.splits, config.requests, size=2**62)
    if not asked:
        raise UserError(
            f"the cohort has no study in {', '.join(config.splits)} to try the model with: set trial.splits"
        )
    parameters = how.recipe.sampling.parameters(asking.max_tokens, asking.temperature, asking.seed)

    def turns() -> Iterator[bytes]:
        while True:
            for question in questions.questions(cohort, asked[0], (), how):
                yield questions.body(question, parameters)

    return itertools.islice(turns(), config.requests)


def _users(endpoint: Endpoint, base_url: str, seconds: int) -> tuple[float, float] | None:
    """(requests, failures) that the model's own pods had, where Prometheus counts them: vLLM's by status.

    Ours are among them. 4xx are the asker's fault. What they counted, not its increase: a canary's pods are
    new, and the increase of a series that begins within the time leaves its first value out.

    Raises:
        UserError: it cannot be asked, or knows of no request, ours included.
    """
    if not isinstance(endpoint, InferenceServiceEndpoint) or not endpoint.served.config.prometheus:
        return None
    prometheus = endpoint.served.config.prometheus
    host = (urlsplit(base_url).hostname or "").split(".")  # SLOT's Service, then its namespace
    pods = f'pod=~"{host[0]}-.*",namespace="{host[1] if len(host) > 1 else ""}"'
    every = _sum(prometheus, f"http_requests_total{{{pods}}}", seconds)
    if every == 0:
        raise UserError(
            f"Prometheus at {prometheus} counts no request of the pods {host[0]}-*, though they were asked: "
            "have it scrape them and run the same again, or leave cluster.prometheus empty"
        )
    return every, _sum(prometheus, f'http_requests_total{{{pods},status=~"5.*"}}', seconds)


def _sum(prometheus: str, series: str, seconds: int) -> float:
    query = urlencode({"query": f"sum(max_over_time({series}[{seconds}s]))"})
    try:
        with urllib.request.urlopen(f"{prometheus}/api/v1/query?{query}", timeout=PROMETHEUS_S) as answer:
            found = json.load(answer)["data"]["result"]
        count = float(found[0]["value"][1]) if found else 0.0
        if not math.isfinite(count):
            raise ValueError("no number")
    except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"Prometheus at {prometheus} does not say how the canary does ({type(error).__name__}): put it "
            "right and run the same again, or leave cluster.prometheus empty"
        ) from None
    return count
