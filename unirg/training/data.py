"""Studies -> what a trainer sees: the chat with its images, and the reference (SFT: as the completion)."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unirg import prompts
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.study import Study

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import ProcessorMixin

KEPT_BYTES = 512 * 2**20
"""Of decoded radiographs in memory: 10,000 of the toy's size, 700 of 512 x 512."""


def training_studies(cohort: Cohort) -> list[Study]:
    """The training split.

    Raises:
        UserError: it is empty.
    """
    studies = cohort.studies("train")
    if not studies:
        raise UserError(
            f"cohort {cohort.artifact.uri} has no study in split train: stage more, or split it otherwise"
        )
    return studies


def shows_prior(study: Study, share: float, seed: int) -> bool:
    """Whether the draw of this study, by its id alone, is within the share that is shown with its prior."""
    draw = hashlib.sha256(f"{seed}\0{study.study_id}".encode()).digest()
    return int.from_bytes(draw[:8]) / 2**64 < share


class Examples:
    """A sequence over staged studies that decodes images when they are asked for.

    Each item has `prompt` (messages), `images` (PIL), `reference` (text), `study_id`, and for SFT
    `completion` (messages).
    """

    def __init__(
        self,
        cohort: Cohort,
        studies: Sequence[Study],
        processor: ProcessorMixin,
        prior_share: float,
        seed: int,
        completion: bool,
    ) -> None:
        """
        Args:
            prior_share: share of the studies with a prior that are shown with it (longitudinal input).
            seed: chooses them, study by study, whatever else is in the cohort.
        """
        self.cohort, self.studies, self.completion = cohort, studies, completion
        self.prior_share, self.seed = prior_share, seed
        self._images = _Images(processor)

    def dataset(self) -> Dataset:
        """The same as the `datasets.Dataset` that TRL wants: rows of numbers, turned into items on access."""
        from datasets import Dataset

        def items(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
            found = [self[number] for number in batch["number"]]
            return {name: [item[name] for item in found] for name in found[0]}

        rows = Dataset.from_dict({"number": list(range(len(self)))})
        # Without a name for the result `datasets` would make one by pickling the whole cohort.
        rows.set_format("custom", transform=items, new_fingerprint=self.cohort.artifact.digest)
        return rows

    def numbers(self) -> Dataset:
        """Rows that hold an item's number alone, for a trainer that has the items prepared elsewhere."""
        from datasets import Dataset

        return Dataset.from_dict({"number": list(range(len(self)))})

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, number: int) -> dict[str, Any]:
        study = self.studies[number]
        prior = self._prior(study)
        wanted = prompts.sections(study)
        if wanted is None:
            raise ValueError(f"{study} has no reference to train on")
        pictures = [self._images.of(self.cohort, shown) for shown in ((prior, study) if prior else (study,))]
        item: dict[str, Any] = {
            "prompt": prompts.messages(study, wanted, prior),
            "images": pictures,
            "reference": prompts.report(study),
            "study_id": study.study_id,
        }
        if self.completion:
            text = {"type": "text", "text": item["reference"]}
            item["completion"] = [{"role": "assistant", "content": [text]}]
        return item

    def lengths(self, image: int) -> list[int]:
        """About how many tokens each item has, without reading an image: a token is 4 characters.

        Args:
            image: tokens of one image.
        """
        found = []
        for study in self.studies:
            prior = self._prior(study)
            texts = [study.indication, study.comparison, prompts.report(study)]
            texts += [prompts.report(prior)] if prior else []
            characters = sum(len(text) for text in texts if text)
            found.append((2 if prior else 1) * image + characters // 4)
        return found

    def _prior(self, study: Study) -> Study | None:
        """The prior study to show, without image data."""
        if not shows_prior(study, self.prior_share, self.seed):
            return None
        return self.cohort.prior(study, images=False)


class _Images:
    """Radiographs at the size to which the processor would bring them, the last ones kept.

    A trainer's processor resizes an image anew for each epoch and each rollout; one that has the right
    size already passes through unchanged, pixel for pixel.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor.image_processor
        self.kept: OrderedDict[str, Any] = OrderedDict()

    def of(self, cohort: Cohort, study: Study) -> Any:
        found = self.kept.get(study.study_id)
        if found is None:
            (png,) = prompts.images(cohort.with_images(study.study_id))
            found = self.kept[study.study_id] = self.shrunk(png)
            if len(self.kept) * found.width * found.height * 3 > KEPT_BYTES:
                self.kept.popitem(last=False)
        return found

    def shrunk(self, png: bytes) -> Any:
        """PNG -> RGB image of the processor's own size, by the processor's own resizing."""
        from PIL import Image as PIL

        processor = self.processor
        rgb = np.asarray(PIL.open(io.BytesIO(png)).convert("RGB")).transpose(2, 0, 1)
        factor = processor.patch_size * processor.merge_size
        resized = processor.resize(rgb, processor.size, processor.resample, factor)
        return PIL.fromarray(np.ascontiguousarray(resized.transpose(1, 2, 0)))
