"""Score the studies of a cohort with a model behind an endpoint: a report for each, or the reason why not.

What is finished goes into the ledger of its range (`ledger`) a segment at a time, at most `segment_studies`
or `segment_s` seconds of it; a run that was killed asks again for what no segment has. When every range is
complete, their rows become the artifact. Ranges are taken one after the other, so that memory does not
depend on the archive's size; several clients may share them (`part`), with no word between them but the
ledger's.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from unirg import artifact, prompt_recipes, telemetry
from unirg.artifact import Artifact, Draft
from unirg.cohort.reader import Cohort
from unirg.config import Config, operational
from unirg.errors import UserError
from unirg.scoring import ledger as ledgers
from unirg.scoring.client import EMPTY
from unirg.scoring.ledger import Ledger
from unirg.scoring.questions import Range, ranges
from unirg.scoring.run import Run
from unirg.study import Split

VERSION = 2
NOTICE = "research use, not for diagnosis"
"""With every prediction, wherever it goes: a column, as tables lose their metadata on the way."""
MODEL = "logs/model.json"
"""Who wrote the predictions, what its digest rests on, and when the last one was there."""
ROWS = 65_536
"""Predictions of one file."""
PREDICTIONS = pa.schema(
    [
        *(
            ledgers.SEGMENT.field(name).with_nullable(False)
            for name in ("study_id", "corpus", "institution", "patient_id", "split", "sections", "with_prior")
        ),
        *(
            ledgers.SEGMENT.field(name).with_nullable(False)
            for name in ("text", "finish_reason", "prompt_tokens", "completion_tokens", "prompt_digest")
        ),
        pa.field("model_digest", pa.string(), nullable=False),
        pa.field("notice", pa.string(), nullable=False),
    ],
    metadata={"notice": NOTICE},
)
FAILURES = pa.schema(
    [
        ledgers.SEGMENT.field(name).with_nullable(False)
        for name in ("study_id", "corpus", "split", "reason", "attempts")
    ],
    metadata={"notice": NOTICE},
)
LATENCIES = pa.schema(
    [ledgers.SEGMENT.field(name).with_nullable(False) for name in ("study_id", "corpus", "latency_s")]
)


class ScoreConfig(Config):
    """What is asked of the model, and how."""

    splits: tuple[Split, ...] = ("test", "zero_shot")
    """Splits of the cohort to score; one that the cohort lacks is passed over."""
    prompt: str = operational("unirg")
    """How the model is asked and its answer read: a shipped prompt recipe (`comparators/`) or a YAML file;
    its digest is part of the identity."""
    with_priors: bool = False
    """Show the previous study's image and report where the patient has one."""
    max_tokens: int = Field(default=512, ge=1)
    """Tokens of a report at most."""
    truncated: Literal["fail", "keep"] = "fail"
    """What a report is that was cut there: a failure; or a prediction whose `finish_reason` is length, as
    evaluation has it, so that no system gains by it."""
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    """0 is greedy, as the paper evaluates."""
    seed: int = Field(default=0, ge=0)
    """Of sampling; each study draws with a seed of its own derived from it."""
    permute_images: int | None = None
    """A seed: show every study the images of another one of its split. A policy that looks at the image
    must then score worse."""
    limit: int | None = Field(default=None, ge=1)
    """Studies of each split at most, the first of the cohort."""
    concurrency: int = operational(64, ge=1)
    """Requests in flight at most; twice the server's batch keeps it busy."""
    timeout_s: float = operational(120.0, gt=0)
    """Seconds that one answer may take."""
    retries: int = operational(4, ge=0)
    """How often a study is asked again after a faulty answer, restarts included."""
    patience_s: float = operational(300.0, gt=0)
    """Seconds without any completion after which an unavailable endpoint counts as gone: long enough for a
    server's pod to be replaced, with its weights."""
    segment_studies: int = operational(256, ge=1, le=256)
    """Finished studies that are written to the ledger at once, at most."""
    segment_s: float = operational(30.0, gt=0, le=30.0)
    """Seconds after which a finished study is written at last."""
    range_studies: int = Field(default=4096, ge=1)
    """Studies of a range, which is what clients share an archive by; it is part of where ledgers lie."""
    price_per_hour: float | None = operational(None, gt=0)
    """Of the endpoint, in a currency of yours: progress then tells the cost."""


class Endpoint(Protocol):
    """What scoring needs to know of a model: who it is, and where it answers."""

    @property
    def model_name(self) -> str: ...
    @property
    def model_digest(self) -> str: ...
    @property
    def restarts(self) -> bool:
        """Whether `connect` starts a server of its own, which may be started again when it has died."""
        ...

    def connect(self) -> AbstractContextManager[str]: ...


Part = tuple[int, int]
"""(which, of how many): a client takes each range whose number leaves `which` when divided."""


@telemetry.verb("score")
def score(config: ScoreConfig, cohort: Artifact, endpoint: Endpoint, store: str) -> Artifact:
    """Score the cohort's studies, but for what others have scored in the same store.

    Returns:
        A predictions artifact: `predictions/*.parquet`, `failures.parquet` and `logs/latency.parquet`.

    Raises:
        UserError: the cohort has none of the splits, the endpoint is gone, or no study could be scored.
        StorageError: the store cannot be read or written.
    """
    inputs = _inputs(config, cohort, endpoint)
    with artifact.draft(store, "score", VERSION, config, inputs) as draft:
        if draft.committed:
            Ledger.of(draft.uri).remove()  # who was killed after the commit could not
            return draft.committed
        opened, wanted = _opened(config, cohort)
        ledger = _begin(draft.uri, wanted)
        _ask(config, opened, wanted, endpoint, ledger)
        try:
            made = draft.commit(_write(draft, wanted, ledger, endpoint))
        except ledgers.Incomplete:
            # Another machine's client, which has all rows too, has committed them and removed the ledger.
            found = artifact.find(draft.uri)
            if found is None:
                raise
            made = found
        ledger.remove()
        return made


def score_part(config: ScoreConfig, cohort: Artifact, endpoint: Endpoint, store: str, part: Part) -> str:
    """Score the studies of some ranges; `score` then makes the artifact of all.

    Returns:
        The URI that the artifact will have, or has.

    Raises:
        UserError, StorageError: as `score`.
    """
    uri = artifact.place(
        store, "score", artifact.action_key("score", VERSION, config, _inputs(config, cohort, endpoint))
    )
    if artifact.find(uri) is None:
        opened, wanted = _opened(config, cohort)
        ledger = _begin(uri, wanted)
        which, of = part
        mine = [one for one in wanted if one.number % of == which]
        _ask(config, opened, mine, endpoint, ledger)
        if artifact.find(uri):  # another client had all rows before us: what we put since is of no use
            ledger.remove()
    return uri


def _begin(uri: str, wanted: list[Range]) -> Ledger:
    """The ledger of an artifact, which `status` can now be asked about."""
    ledger = Ledger.of(uri)
    ledger.plan(sum(one.studies for one in wanted))
    print(f"score: into {uri} (`unirg score --status` of it says how far it is)", file=sys.stderr, flush=True)
    return ledger


def _inputs(config: ScoreConfig, cohort: Artifact, endpoint: Endpoint) -> dict[str, Artifact | str]:
    recipe = prompt_recipes.load(config.prompt)
    return {"cohort": cohort, "model": endpoint.model_digest, "prompts": recipe.digest}


def _opened(config: ScoreConfig, cohort: Artifact) -> tuple[Cohort, list[Range]]:
    opened = Cohort.open(cohort)
    wanted = ranges(opened, config.splits, config.limit, config.range_studies)
    if not wanted:
        raise UserError(f"{cohort.uri} has no study in {', '.join(config.splits)}: choose other splits")
    return opened, wanted


def _ask(
    config: ScoreConfig, cohort: Cohort, wanted: list[Range], endpoint: Endpoint, ledger: Ledger
) -> None:
    """Ask for whatever no segment has; the endpoint is started only if there is something."""
    total = sum(one.studies for one in wanted)
    complete = ledger.complete()
    left = [one for one in wanted if one.number not in complete]
    if left:
        done = total - sum(one.studies for one in left)
        Run(config, cohort, endpoint, ledger, telemetry.Progress("score", total, "studies", done)).all(left)


def _write(draft: Draft, wanted: list[Range], ledger: Ledger, endpoint: Endpoint) -> dict[str, int]:
    """Write the artifact's files from the ledger; the counts.

    Raises:
        UserError: no study got an answer of its own, so the fault lies with the endpoint or the request.
        Incomplete: the ledger has lost rows.
    """
    counts, reasons = Counter[str](), Counter[str]()
    added = {"model_digest": endpoint.model_digest, "notice": NOTICE}
    (draft.out / "logs").mkdir()
    with (
        _Files(draft.out / "predictions", PREDICTIONS) as predictions,
        pq.ParquetWriter(draft.out / "failures.parquet", FAILURES) as failures,
        pq.ParquetWriter(draft.out / "logs" / "latency.parquet", LATENCIES) as latencies,
    ):
        for one in wanted:
            rows = list(ledger.unread(one.number).rows())
            if len(rows) != one.studies:
                raise ledgers.Incomplete(
                    f"{ledger.uri} has {len(rows)} of {one.studies} studies of range {one.number}, and had "
                    "all: it was removed meanwhile; run the same command again"
                )
            scored = [row | added for row in rows if row["kind"] == "scored"]
            failed = [row for row in rows if row["kind"] == "failed"]
            predictions.write(scored)
            failures.write_table(pa.Table.from_pylist(failed, FAILURES))
            latencies.write_table(pa.Table.from_pylist(scored, LATENCIES))
            reasons.update(row["reason"] for row in failed)
            counts["studies"] += len(rows)
            counts["scored"] += len(scored)
            counts["failed"] += len(failed)
            counts["truncated"] += sum(row["finish_reason"] == "length" for row in rows)
    if not counts["scored"] and EMPTY not in reasons:
        ledger.remove()
        reason, times = reasons.most_common(1)[0]
        raise UserError(
            f"none of {counts['studies']} studies was scored; {times} failed with: {reason}. Look after the "
            "endpoint (`unirg serve` in the foreground shows its log), then run the same command again"
        )
    (draft.out / MODEL).write_text(json.dumps(_author(endpoint), indent=1))
    return {name: counts[name] for name in ("studies", "scored", "failed", "truncated")}


def _author(endpoint: Endpoint) -> dict[str, str]:
    """For people and exports; no part of the artifact's content, as a name is the deployment's choice."""
    return {
        "name": endpoint.model_name,
        "digest": endpoint.model_digest,
        "basis": getattr(endpoint, "basis", "digest of the checkpoint"),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


class _Files:
    """Parquet files of `ROWS` rows each; a context that closes the last."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir()
        self._folder, self._schema = folder, schema
        self._number, self._rows = 0, 0
        self._file = self._next()

    def _next(self) -> pq.ParquetWriter:
        self._rows = 0
        return pq.ParquetWriter(self._folder / f"{self._number:06d}.parquet", self._schema)

    def write(self, rows: list[dict[str, Any]]) -> None:
        if self._rows >= ROWS:
            self._file.close()
            self._number += 1
            self._file = self._next()
        self._file.write_table(pa.Table.from_pylist(rows, self._schema))
        self._rows += len(rows)

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def status(uri: str) -> Iterator[str]:
    """Lines on how far the scoring of an artifact is, from another shell.

    Raises:
        UserError: nothing is known of it.
    """
    found = artifact.find(uri)
    if found:
        told = found.manifest.counts
        yield f"done: {told['scored']} scored, {told['failed']} failed of {told['studies']} studies"
        return
    try:
        lines = list(Ledger.of(uri).status())
    except FileNotFoundError:  # it was committed, and its ledger removed, while we read
        lines = list(status(uri))
    yield from lines
