"""Score a cohort's studies with a model behind an endpoint: a report for each, or the reason why not.

Every finished study is in a journal at once, so a killed run repeats at most what was in flight; the
endpoint is started only if something is left to do.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from unirg import artifact, prompts, telemetry
from unirg.artifact import Artifact, Draft
from unirg.cohort.reader import Cohort
from unirg.config import Config, operational
from unirg.errors import UserError
from unirg.scoring.client import EMPTY, ChatClient, StudyFailed
from unirg.scoring.journal import Journal
from unirg.scoring.questions import Question, Task, ask, plan
from unirg.storage import sha256
from unirg.study import Split

VERSION = 1
PREDICTIONS = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("institution", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("sections", pa.string(), nullable=False),
        pa.field("with_prior", pa.bool_(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("completion_tokens", pa.int32(), nullable=False),
    ]
)
FAILURES = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
    ]
)
LATENCIES = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("latency_s", pa.float64(), nullable=False),
    ]
)


class ScoreConfig(Config):
    """What is asked of the model, and how."""

    splits: tuple[Split, ...] = ("test", "zero_shot")
    """Splits of the cohort to score; one that the cohort lacks is passed over."""
    with_priors: bool = False
    """Show the previous study's image and report where the patient has one."""
    max_tokens: int = Field(default=512, ge=1)
    """Tokens of a report at most; one that is cut there keeps `finish_reason` length."""
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    """0 is greedy, as the paper evaluates."""
    seed: int = Field(default=0, ge=0)
    """Of sampling; each study draws with a seed of its own derived from it."""
    permute_images: int | None = None
    """A seed: show every study the images of another one of its split. A policy that looks at the image
    must then score worse."""
    limit: int | None = Field(default=None, ge=1)
    """Studies of each split at most, the first by corpus and id."""
    concurrency: int = operational(64, ge=1)
    """Requests in flight; twice the server's batch keeps it busy."""
    timeout_s: float = operational(120.0, gt=0)
    """Seconds that one answer may take."""
    retries: int = operational(4, ge=0)
    """How often a study is asked again after a faulty answer."""
    patience_s: float = operational(60.0, gt=0)
    """Seconds without any completion after which an unavailable endpoint counts as gone."""


class Endpoint(Protocol):
    """What scoring needs to know of a model: who it is, and where it answers."""

    @property
    def model_name(self) -> str: ...
    @property
    def model_digest(self) -> str: ...
    def connect(self) -> AbstractContextManager[str]: ...


@telemetry.verb("score")
def score(config: ScoreConfig, cohort: Artifact, endpoint: Endpoint, store: str) -> Artifact:
    """Score the cohort's studies.

    Returns:
        A predictions artifact: `predictions.parquet`, `failures.parquet` and `logs/latency.parquet`.

    Raises:
        UserError: the cohort has none of the splits, the endpoint is gone, or no study could be scored.
    """
    inputs: dict[str, Artifact | str] = {
        "cohort": cohort,
        "model": endpoint.model_digest,
        "prompts": prompts.VERSION,
    }
    with artifact.draft(store, "score", VERSION, config, inputs) as draft:
        if draft.committed:
            return draft.committed
        opened = Cohort.open(cohort)
        tasks = plan(opened, config.splits, config.limit, config.permute_images)
        if not tasks:
            raise UserError(f"{cohort.uri} has no study in {', '.join(config.splits)}: choose other splits")
        with Journal(draft.scratch / "outcomes.jsonl") as journal:
            pending = [task for task in tasks if task.key not in journal.outcomes]
            if pending:
                with endpoint.connect() as url:
                    told = telemetry.Progress("score", len(tasks), "studies", len(tasks) - len(pending))
                    asyncio.run(_run(config, opened, pending, url, endpoint, journal, told))
                    told.finish()
            counts = _write(draft, {task.key: task for task in tasks}, journal)
        return draft.commit(counts)


async def _run(
    config: ScoreConfig,
    cohort: Cohort,
    pending: list[Task],
    url: str,
    endpoint: Endpoint,
    journal: Journal,
    told: telemetry.Progress,
) -> None:
    """Score `pending` with `concurrency` workers, each taking the next study."""
    todo = iter(pending)
    client = ChatClient(
        url,
        endpoint.model_name,
        endpoint.model_digest,
        connections=config.concurrency,
        timeout_s=config.timeout_s,
        retries=config.retries,
        patience_s=config.patience_s,
    )
    with ThreadPoolExecutor(1, "read") as reader:  # one: open Parquet files are not shared by threads

        async def work() -> None:
            loop = asyncio.get_running_loop()
            for task in todo:
                asked = await loop.run_in_executor(reader, ask, cohort, task, config.with_priors)
                journal.append(await _outcome(client, task, asked, config))
                told.advance()

        try:
            async with client, asyncio.TaskGroup() as group:
                for _ in range(min(config.concurrency, len(pending))):
                    group.create_task(work())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None


async def _outcome(client: ChatClient, task: Task, asked: Question, config: ScoreConfig) -> dict[str, Any]:
    """Ask for one study; its line in the journal."""
    corpus, study_id = task.key
    record: dict[str, Any] = {"corpus": corpus, "study_id": study_id}
    parameters: dict[str, Any] = {"max_tokens": config.max_tokens, "temperature": config.temperature}
    if config.temperature > 0:
        parameters["seed"] = int(sha256(f"{config.seed}/{corpus}/{study_id}".encode())[:8], 16)
    try:
        completion = await client.complete(asked.messages, **parameters)
    except StudyFailed as failed:
        telemetry.count("unirg.studies", stage="score", outcome="failed")
        return record | {"reason": failed.reason, "attempts": failed.attempts}
    telemetry.count("unirg.studies", stage="score", outcome="scored")
    telemetry.count("unirg.tokens", completion.prompt_tokens, stage="score", kind="prompt")
    telemetry.count("unirg.tokens", completion.completion_tokens, stage="score", kind="completion")
    telemetry.record("unirg.score.latency", completion.latency_s)
    return record | asdict(completion) | {"sections": asked.sections, "with_prior": asked.with_prior}


def _write(draft: Draft, tasks: dict[tuple[str, str], Task], journal: Journal) -> dict[str, int]:
    """Write the artifact's files from the journal; the counts.

    Raises:
        UserError: no study got an answer of its own, so the fault lies with the endpoint or the request.
    """
    outcomes = [outcome for outcome in journal if (outcome["corpus"], outcome["study_id"]) in tasks]
    failures = [outcome for outcome in outcomes if "reason" in outcome]
    predictions = [outcome for outcome in outcomes if "reason" not in outcome]
    reasons = Counter(failure["reason"] for failure in failures)
    if not predictions and EMPTY not in reasons:
        journal.clear()
        reason, times = reasons.most_common(1)[0]
        raise UserError(
            f"none of {len(tasks)} studies was scored; {times} failed with: {reason}. Look after the "
            "endpoint (`unirg serve` in the foreground shows its log), then run the same command again"
        )
    for outcome in outcomes:
        study = tasks[outcome["corpus"], outcome["study_id"]].study
        outcome |= {
            "institution": study.institution,
            "patient_id": study.patient_id,
            "split": study.split,
        }
    (draft.out / "logs").mkdir()
    for name, rows, schema in (
        ("predictions.parquet", predictions, PREDICTIONS),
        ("failures.parquet", failures, FAILURES),
        ("logs/latency.parquet", predictions, LATENCIES),
    ):
        pq.write_table(pa.Table.from_pylist(rows, schema), draft.out / name)
    return {
        "studies": len(tasks),
        "scored": len(predictions),
        "failed": len(failures),
        "truncated": sum(outcome["finish_reason"] == "length" for outcome in predictions),
    }
