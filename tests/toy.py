"""A small cohort and a random-initialised policy as real artifacts, for tests of serving and scoring."""

from __future__ import annotations

import io
import random

import numpy as np
import pyarrow.parquet as pq
from PIL import Image as Picture

from unirg import artifact, checkpoint, prompts, storage
from unirg.artifact import Artifact
from unirg.cohort.reader import INDEX, Index, Shard
from unirg.config import Config
from unirg.study import Image, Split, Study, to_table
from unirg.training.policy import ToyConfig, toy_policy

_TEXT = (
    "The heart is enlarged . Lungs are clear without effusion or pneumothorax . New left right small large "
    "opacity edema unchanged resolved mediastinum within normal limits Findings: Impression: Indication:"
)
WORDS = _TEXT.split()


class _Made(Config):
    seed: int
    studies: int = 0
    endless: bool = False


def picture(seed: int, size: int = 512) -> bytes:
    """A PNG of smooth random shapes with noise, about as large as a radiograph's."""
    random_numbers = np.random.default_rng(seed)
    coarse = Picture.fromarray(random_numbers.integers(0, 200, (6, 6), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Picture.Resampling.BICUBIC), dtype=np.int16)
    noisy = np.clip(smooth + random_numbers.normal(0, 4, (size, size)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Picture.fromarray(noisy).save(buffer, "PNG")
    return buffer.getvalue()


def study(number: int, split: Split) -> Study:
    """Every third study is the second encounter of the patient before it."""
    chance = random.Random(number)
    second = number % 3 == 2
    return Study(
        corpus="toy",
        study_id=f"s{number:05d}",
        patient_id=f"p{number - second:05d}",
        institution=f"hospital-{number % 2}",
        split=split,
        images=(Image(view="frontal", projection="PA", data=picture(number)),),
        indication=" ".join(chance.choices(WORDS, k=chance.randrange(3, 25))),
        findings=" ".join(chance.choices(WORDS, k=20)),
        impression=" ".join(chance.choices(WORDS, k=6)) if number % 4 else None,
        encounter=1 + second,
        prior_study_id=f"s{number - 1:05d}" if second else None,
    )


def make_cohort(store: str, studies: int, seed: int = 0) -> Artifact:
    """A cohort of `studies` in the splits test (two thirds) and zero_shot."""
    with artifact.draft(store, "cohort", 1, _Made(seed=seed, studies=studies), {}) as draft:
        if draft.committed:
            return draft.committed
        zero_shot = 2 * studies // 3 // 3 * 3
        parts: dict[Split, range] = {"test": range(zero_shot), "zero_shot": range(zero_shot, studies)}
        shards = []
        for split, numbers in parts.items():
            path = draft.scratch / f"{split}.parquet"
            table = to_table(study(seed * 10_000 + number, split) for number in numbers)
            pq.write_table(table, path, row_group_size=16, compression="none")
            data = path.read_bytes()
            shard = Shard(sha256=storage.sha256(data), bytes=len(data), split=split, studies=len(numbers))
            storage.put_new(storage.join(store, shard.name), data)
            shards.append(shard)
        index = Index(corpus="toy", hold_out=(), shards=tuple(shards), dropped={}, account={}, duplicates={})
        (draft.out / INDEX).write_text(index.model_dump_json())
        return draft.commit()


def make_checkpoint(store: str, seed: int = 0, endless: bool = False) -> Artifact:
    """A random policy, with weights large enough that its text depends on what it is shown.

    An endless one never ends a report itself, so that a test decides how long generation takes.
    """
    chance = random.Random(seed)
    texts = [" ".join(chance.choices(WORDS, k=40)) for _ in range(200)]
    texts += [prompts.messages(study(1, "test"), "both")[0]["content"][-1]["text"]]
    with artifact.draft(store, "base", 1, _Made(seed=seed, endless=endless), {}) as draft:
        if draft.committed:
            return draft.committed
        model, processor = toy_policy(ToyConfig(initializer_range=0.2), texts, seed)
        if endless:  # a zero row of the (tied) output makes a logit of 0, which is never the largest
            model.get_input_embeddings().weight.data[model.generation_config.eos_token_id] = 0
        checkpoint.save(model, processor, draft.out / checkpoint.MODEL)
        return draft.commit()
