"""What there is to train on: stated averages, or the exact tokens of a cohort under a parent's processor."""

from __future__ import annotations

from pydantic import Field

from unirg import checkpoint, prompts
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.config import Config
from unirg.errors import UserError
from unirg.training.data import shows_prior, training_studies
from unirg.training.settings import TrainConfig
from unirg.training.sizes import Sample, Shape


class Workload(Config):
    """What there is to train on, on average, where no cohort is at hand."""

    studies: int = Field(ge=1)
    """In the training split."""
    side: int = Field(ge=32)
    """Of a radiograph, in pixels."""
    prompt_tokens: float = Field(gt=0)
    """Of text in a prompt without prior, markup included, images left out."""
    report_tokens: float = Field(gt=0)
    """Of a report."""
    priors: float = Field(ge=0, le=1)
    """Share of the studies that have a prior."""
    prior_tokens: float = Field(ge=0)
    """Of text that a prior adds."""

    def sample(self, config: TrainConfig, shape: Shape) -> Sample:
        """The average study as `config` shows it."""
        shown = config.prior_share * self.priors
        prompt = self.prompt_tokens + shown * self.prior_tokens
        return Sample(prompt, self.report_tokens, 1 + shown, shape.image_tokens(self.side))


def measured(cohort: Artifact, parent: Artifact, config: TrainConfig) -> tuple[int, Sample]:
    """Training studies and their exact mean: each prompt and report is tokenized, no image is read.

    In GRPO the reports are the references: how long rollouts will be is not known.

    Raises:
        UserError: the training split is empty.
    """
    opened = Cohort.open(cohort)
    studies = training_studies(opened)
    every = {study.study_id: study for study in opened.studies()}
    processor = checkpoint.load_processor(parent.directory / checkpoint.MODEL)
    asked, written, images = [], [], 0
    for study in studies:
        prior = None
        if study.prior_study_id and shows_prior(study, config.prior_share, config.seed):
            prior = every.get(study.prior_study_id)
        wanted = prompts.sections(study)
        if wanted is None:
            raise ValueError(f"{study} has no reference to train on")
        chat = prompts.messages(study, wanted, prior)
        answer = {"role": "assistant", "content": prompts.report(study)}
        render = processor.tokenizer.apply_chat_template
        asked.append(render(chat, tokenize=False, add_generation_prompt=True))
        written.append(render([*chat, answer], tokenize=False)[len(asked[-1]) :])
        images += 2 if prior else 1
    size = cohort.manifest.config.get("size")
    if not isinstance(size, int):
        raise UserError(f"{cohort.uri} does not say what size its radiographs were staged at: stage it again")
    vision = processor.image_processor
    patches = vision.get_number_of_image_patches(size, size, {})
    tokens = patches // vision.merge_size**2
    counts = [sum(len(ids) for ids in processor.tokenizer(texts)["input_ids"]) for texts in (asked, written)]
    number = len(studies)
    # An image's place is one token in the text; the processor makes the image's tokens of it.
    return number, Sample((counts[0] - images) / number, counts[1] / number, images / number, tokens)
