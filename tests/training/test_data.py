"""What a trainer sees of a study: the chat, its reference, and the very pixels that the processor makes."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL

from tests.cohort.films import Films
from unirg import prompts
from unirg.artifact import Artifact
from unirg.cohort import imaging
from unirg.cohort import stage as staging
from unirg.cohort.reader import Cohort
from unirg.cohort.stage import StageConfig, stage
from unirg.errors import UserError
from unirg.training import data
from unirg.training.data import Examples, training_studies
from unirg.training.policy import ToyConfig, _images, toy_policy

ALL_TRAIN = {"split": {"test": 0.0, "validate": 0.0}, "size": 64, "workers": 1}


@pytest.fixture(scope="module")
def processor() -> Any:
    _, processor = toy_policy(ToyConfig(), ["Findings: clear."] * 20, seed=0)
    return processor


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Twenty studies, every second one with a prior, all of them for training."""
    return Cohort.open(staged(Films(count=20), str(tmp_path_factory.mktemp("store"))))


def staged(corpus: Films, store: str, **fields: Any) -> Artifact:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "open_corpus", lambda config: corpus)
        return stage(StageConfig.model_validate({**ALL_TRAIN, **fields}), store)


def examples(cohort: Cohort, processor: Any, prior_share: float = 0.0, **options: Any) -> Examples:
    given = {"seed": 0, "completion": True} | options
    return Examples(cohort, training_studies(cohort), processor, prior_share, **given)


def radiograph(seed: int) -> bytes:
    """A staged image: smooth shapes and noise, 512 x 512, PNG."""
    chance = np.random.default_rng(seed)
    coarse = PIL.fromarray(chance.integers(0, 255, (9, 9), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((512, 512), PIL.Resampling.BICUBIC), np.int16)
    return imaging.encode_png(np.clip(smooth + chance.normal(0, 9, smooth.shape), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [64, 128, 224, 512, 1024])
def test_a_shrunk_image_is_for_the_policy_exactly_what_the_processor_makes_of_the_whole_one(
    size: int,
) -> None:
    class Processor:
        image_processor = _images(ToyConfig.model_construct(image_size=size))

    for seed in range(3):
        png = radiograph(seed)
        whole = PIL.open(io.BytesIO(png)).convert("RGB")
        shrunk = data._Images(Processor).shrunk(png)
        assert (shrunk.mode, shrunk.size) == ("RGB", (size, size))
        seen, expected = (Processor.image_processor(images=[image]) for image in (shrunk, whole))
        assert np.array_equal(seen["pixel_values"], expected["pixel_values"])
        assert np.array_equal(seen["image_grid_thw"], expected["image_grid_thw"])


def test_an_item_holds_the_chat_the_image_the_reference_and_for_sft_the_completion(
    cohort: Cohort, processor: Any
) -> None:
    given = examples(cohort, processor)
    assert len(given) == 20
    study, item = given.studies[3], given[3]
    assert item["study_id"] == study.study_id
    assert item["prompt"] == prompts.messages(study, "both")
    assert item["reference"] == prompts.report(study)
    assert item["completion"][0]["role"] == "assistant"
    assert item["completion"][0]["content"] == [{"type": "text", "text": item["reference"]}]
    assert [picture.size for picture in item["images"]] == [(128, 128)]
    assert np.all(np.asarray(item["images"][0]) == int(study.study_id[1:]))
    assert "completion" not in examples(cohort, processor, completion=False)[3]


def test_a_study_without_impression_is_asked_for_its_findings_alone(cohort: Cohort, processor: Any) -> None:
    given = examples(cohort, processor)
    assert given.studies[2].impression is None
    assert given[2]["prompt"] == prompts.messages(given.studies[2], "findings")
    assert "Impression:" not in given[2]["reference"]


def test_a_prior_is_shown_before_the_study_with_its_report(cohort: Cohort, processor: Any) -> None:
    item = examples(cohort, processor, prior_share=1.0)[5]
    before, now = (int(np.asarray(picture)[0, 0, 0]) for picture in item["images"])
    assert (before, now) == (4, 5)
    assert "Findings of 4." in item["prompt"][0]["content"][-1]["text"]


def shown_with_prior(cohort: Cohort, processor: Any, share: float, seed: int = 0) -> set[str]:
    given = examples(cohort, processor, prior_share=share, seed=seed)
    return {
        item["study_id"] for item in map(given.__getitem__, range(len(given))) if len(item["images"]) == 2
    }


def test_priors_are_shown_for_the_share_asked_for_chosen_study_by_study(
    cohort: Cohort, processor: Any, tmp_path: Path
) -> None:
    odd = {f"s{number:03d}" for number in range(1, 20, 2)}
    assert shown_with_prior(cohort, processor, 0.0) == set()
    assert shown_with_prior(cohort, processor, 1.0) == odd
    half = shown_with_prior(cohort, processor, 0.5)
    assert set() < half < odd
    assert half == shown_with_prior(cohort, processor, 0.5)
    assert half != shown_with_prior(cohort, processor, 0.5, seed=1)
    assert half <= shown_with_prior(cohort, processor, 0.7)
    fewer = Cohort.open(staged(Films(count=10), str(tmp_path)))
    assert shown_with_prior(fewer, processor, 0.5) == {name for name in half if name < "s010"}


def test_only_so_many_bytes_of_images_are_kept(
    cohort: Cohort, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = examples(cohort, processor)
    width, height = given[0]["images"][0].size
    monkeypatch.setattr(data, "KEPT_BYTES", 3 * width * height * 3)
    first = [np.asarray(given[number]["images"][0]) for number in range(20)]
    assert len(given._images.kept) == 3
    again = [np.asarray(given[number]["images"][0]) for number in range(20)]
    assert all(map(np.array_equal, first, again))


def test_examples_cross_to_a_loaders_process(cohort: Cohort, processor: Any) -> None:
    given = examples(cohort, processor, prior_share=0.5)
    untouched = pickle.loads(pickle.dumps(given))
    expected = given[1]["reference"]
    used = pickle.loads(pickle.dumps(given))  # with files read and images kept
    assert untouched[1]["reference"] == used[1]["reference"] == expected


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    tested = {"split": {"test": 0.99, "validate": 0.0}}
    cohort = Cohort.open(staged(Films(count=2), str(tmp_path), **tested))
    with pytest.raises(UserError, match=r"no study in split train: stage more, or split it otherwise"):
        training_studies(cohort)


def test_a_study_without_a_reference_is_no_example(cohort: Cohort, processor: Any) -> None:
    given = examples(cohort, processor)
    given.studies = [given.studies[0].model_copy(update={"findings": None, "impression": None})]
    with pytest.raises(ValueError, match=r"^Study\(films/s000\) has no reference to train on$"):
        given[0]
