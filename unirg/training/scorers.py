"""The stage `weights`: what the model-based metrics load, as one artifact that is named to them by its URI.

`source: toy` trains scorers of the real architectures on phantom reports, whose truth is known, in about a
minute on two cores: rewards and evaluation of a run without real weights are then the real metrics' own code.
Any other source collects the public ones. Either way the artifact's folders are the scorers' directories.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from unirg import artifact, telemetry
from unirg.artifact import Artifact, Draft
from unirg.cohort.corpora.phantom import Phantom
from unirg.cohort.corpora.phantom.markup import Passage
from unirg.config import Config, operational
from unirg.errors import UserError
from unirg.metrics import weights as public
from unirg.metrics.weights_sources import SOURCES
from unirg.processes import end_descendants, interrupts_kept_from_children, start_worker
from unirg.training import scorers_data

VERSION = 1
"""Raised whenever the same configuration gives other weights."""
TOYS = ("chexbert", "radgraph", "ratescore", "bertscore")
"""The scorers that are trained, the longest training first."""
QUALITY = "quality.json"
HELD_OUT = 200
"""Reports that quality is measured on."""


class ToyScorers(Config):
    """Sizes and lengths of the toy scorers' training."""

    hidden_size: int = Field(default=64, ge=32, multiple_of=32)
    """Width of every encoder (the public ones: 768)."""
    layers: int = Field(default=2, ge=1)
    """Depth of every encoder (the public ones: 6 or 12); BERTScore's has one more than it reads."""
    vocabulary: int = Field(default=400, ge=300)
    """Tokens that are learnt from the reports; letters come in addition."""
    studies: int = Field(default=800, ge=20)
    """Phantom studies whose reports are learnt from."""
    steps: int = Field(default=1000, ge=1)
    """Optimiser steps of RadGraph's training; the others' stand in proportion (`scorers_fit`)."""


class WeightsConfig(Config):
    """Which weights the metrics load."""

    source: str = "toy"
    """`toy`; `hub`: the public ones, as `unirg weights fetch` gets them; or a folder, a prefix of object
    storage or an artifact that holds scorers' directories already."""
    scorers: tuple[str, ...] = TOYS
    """Those that are collected, none where it is empty; all toys are always trained."""
    toy: ToyScorers = ToyScorers()
    """Unused with any other source."""
    seed: int = 0
    """Of the toys' phantoms, initial weights and order of data; quality is measured on `seed` + 1."""
    workers: int = operational(2, ge=1)
    """Processes that train toys, a thread each; 1: none is started for it."""


@telemetry.verb("train.weights")
def weights(config: WeightsConfig, store: str) -> Artifact:
    """Make or collect the scorers' weights.

    Returns:
        An artifact (stage `weights`): a directory for each scorer, and of toys `quality.json`.

    Raises:
        UserError: a scorer is unknown, or the source does not have it.
    """
    if config.source == "toy":
        phantoms = {"phantoms": Phantom(config.toy.studies, config.seed).fingerprint()}
        with artifact.draft(store, public.STAGE, VERSION, config, phantoms) as draft:
            return draft.committed or draft.commit(_train(config, draft))
    found = _collected(config)
    identities = {name: public.identity(path) for name, path in found.items()}
    with artifact.draft(store, public.STAGE, VERSION, config, identities) as draft:
        if draft.committed:
            return draft.committed
        for name, path in found.items():
            shutil.copytree(path, draft.out / name)
        return draft.commit({"scorers": len(found)})


def _collected(config: WeightsConfig) -> dict[str, Path]:
    """The directory of each scorer, fetched from the hub where it is not there yet."""
    from unirg.metrics.weights_fetch import fetch, known

    names = known(config.scorers) if config.scorers else ()
    if config.source == "hub":
        root = public.default_root()
        for name in names:
            if not (root / name).is_dir():
                fetch(name, root)
    else:
        root = public.local(config.source)
    for name in names:
        if not (root / name).is_dir():
            have = ", ".join(sorted(scorer for scorer in SOURCES if (root / scorer).is_dir())) or "none"
            raise UserError(f"{config.source} has no weights of {name} (it has {have}): name them in scorers")
    return {name: root / name for name in names}


def _train(config: WeightsConfig, draft: Draft) -> dict[str, float]:
    """Train the toys that an earlier run has not finished, leave all in `draft.out`, return their quality."""
    todo = [name for name in TOYS if not (draft.scratch / name).is_dir()]
    if todo:
        reports = scorers_data.reports(config.toy.studies, config.seed)
        held_out = scorers_data.reports(min(HELD_OUT, config.toy.studies), config.seed + 1)
        if config.workers == 1:
            for name in todo:
                train_one(name, config, reports, held_out, draft.scratch)
        else:
            _in_processes(config, todo, reports, held_out, draft.scratch)
    for name in TOYS:
        shutil.copytree(draft.scratch / name, draft.out / name)
    quality: dict[str, float] = {}
    for name in TOYS:
        quality.update(public.read_record(draft.out / name)["quality"])
    (draft.out / QUALITY).write_text(json.dumps(quality, indent=1))
    return quality


def _in_processes(
    config: WeightsConfig, names: Sequence[str], reports: list[Passage], held_out: list[Passage], target: Path
) -> None:
    # spawn: a forked child of a process with S3 or OpenTelemetry threads may deadlock
    pool = ProcessPoolExecutor(
        min(config.workers, len(names)), multiprocessing.get_context("spawn"), start_worker
    )
    try:
        with interrupts_kept_from_children():
            jobs = [pool.submit(train_one, name, config, reports, held_out, target) for name in names]
        for job in as_completed(jobs):
            job.result()
    except KeyboardInterrupt:
        end_descendants()  # a training takes a minute, and the pool would wait for its end
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def train_one(
    name: str, config: WeightsConfig, reports: list[Passage], held_out: list[Passage], target: Path
) -> None:
    """Make `<target>/<name>/`, whole or not at all; in a worker process, or in this one."""
    from unirg import checkpoint

    checkpoint.quiet()
    from unirg.training import scorers_fit, scorers_quality

    work = target / f"{name}.part"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with _reproducible(config.seed):
        scorers_fit.FITS[name](config, reports, work)
        quality = scorers_quality.MEASURES[name](work, held_out)
    record: dict[str, Any] = {
        "scorer": name,
        "source": "toy scorers trained on phantoms",
        "identity": public.identity(work),
        "quality": quality,
    }
    (work / public.RECORD).write_text(json.dumps(record, indent=1))
    work.rename(target / name)


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """One thread and a known random state: sums in another order would be other weights."""
    import torch

    threads, parallel = torch.get_num_threads(), os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if parallel is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = parallel
