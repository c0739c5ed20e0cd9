"""The sides of `scoring.py`: our client as a process that is measured, and plain code for the same work."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image

from tests import toy
from unirg import checkpoint, prompt_recipes, prompts
from unirg.artifact import Artifact, open_artifact
from unirg.cohort.reader import Cohort
from unirg.scoring.archive import ScoreConfig, score
from unirg.scoring.questions import Asking, Question, body, questions, ranges
from unirg.serving.endpoint import ServeConfig, open_endpoint, serve

ROOT = Path(__file__).parents[1]
BATCHES = (8, 16, 32, 64)
"""Of which the best is what plain generation is timed with."""


@dataclass(frozen=True)
class Used:
    """What a client's process took, from its start to its end."""

    wall: float
    cpu: float
    rss: int
    """Its largest resident set, in KiB."""


def client(archive: Artifact, url: str, store: Path, *settings: str) -> Used:
    """`unirg score` as a process of its own, alone in its store."""
    command = [sys.executable, "-m", "unirg.cli", "score", "--archive", archive.uri, "--endpoint", url]
    command += ["--model", "stub", "--output", str(store), *settings]
    began = time.monotonic()
    with open(store.with_suffix(".log"), "wb+") as log:
        child = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        _, code, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(code)
        if child.returncode:
            log.seek(0)
            sys.exit(f"the client ended with {child.returncode}: {log.read()[-500:].decode()}")
    return Used(time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss)


@dataclass(frozen=True)
class World:
    """A policy that never ends a report itself, so that every side writes as many tokens, and its archive."""

    archive: Artifact
    policy: Artifact
    store: Path
    tokens: int

    @classmethod
    def made(cls, archive: Artifact, store: Path, tokens: int) -> World:
        return cls(archive, toy.make_checkpoint(str(store), endless=True), store, tokens)

    @contextmanager
    def served(self, batch: int) -> Iterator[str]:
        """The local predictor in a process of its own, with batches of this size; its base URL."""
        with open_endpoint(
            serve(ServeConfig(max_batch=batch), self.policy, str(self.store))
        ).connect() as url:
            yield url

    def asked(self, studies: int) -> list[Question]:
        cohort = Cohort.open(self.archive)
        wanted, how = ranges(cohort, ("test",), studies, studies), Asking(prompt_recipes.load("unirg"))
        return [question for one in wanted for question in questions(cohort, one, (), how)]

    def generate(self, asked: Sequence[Question], batch: int) -> float:
        """Reports a second of `model.generate` over the studies in batches, images decoded as they come."""
        directory = self.policy.directory / checkpoint.MODEL
        processor, model = checkpoint.load_processor(directory), checkpoint.load_model(directory, "float32")
        cohort = Cohort.open(self.archive)
        self._batch(processor, model, cohort, asked[:batch])  # warm
        began = time.monotonic()
        for first in range(0, len(asked), batch):
            self._batch(processor, model, cohort, asked[first : first + batch])
        return len(asked) / (time.monotonic() - began)

    @torch.inference_mode()
    def _batch(self, processor: Any, model: Any, cohort: Cohort, asked: Sequence[Question]) -> list[str]:
        texts, pictures = [], []
        for question in asked:
            chat = prompts.messages(question.study, question.sections)
            texts.append(processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
            found = prompts.images(cohort.with_images(question.study.study_id))
            pictures.append([Image.open(io.BytesIO(one)).convert("RGB") for one in found])
        inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=self.tokens)
        written = output[:, inputs["input_ids"].shape[1] :]
        return list(processor.tokenizer.batch_decode(written, skip_special_tokens=True))

    def one_at_a_time(self, asked: Sequence[Question], url: str) -> float:
        """Reports a second of the loop that anybody writes first: a request, its answer, the next one."""
        bodies = [body(question, {"model": "unirg", "max_tokens": self.tokens}) for question in asked]
        with httpx.Client(timeout=120, trust_env=False) as http:
            began = time.monotonic()
            for one in bodies:
                http.post(f"{url}/chat/completions", content=one, headers=JSON).raise_for_status()
            return len(asked) / (time.monotonic() - began)

    def ours(self, studies: int, url: str, store: Path, batch: int) -> float:
        """Reports a second of our client, from an archive to a committed artifact; two batches in flight."""
        config = ScoreConfig(
            splits=("test",),
            limit=studies,
            max_tokens=self.tokens,
            truncated="keep",
            concurrency=2 * batch,
        )
        began = time.monotonic()
        made = score(config, open_artifact(self.archive.uri), _There(url, self.policy.digest), str(store))
        seconds = time.monotonic() - began
        if made.manifest.counts["scored"] != studies:
            sys.exit(f"{made.manifest.counts['failed']} studies failed: the predictor is at fault")
        return studies / seconds


JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class _There:
    """An endpoint that is up already."""

    url: str
    model_digest: str
    model_name: str = "unirg"
    restarts: bool = False

    def connect(self) -> AbstractContextManager[str]:
        return nullcontext(self.url)
