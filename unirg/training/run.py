"""Run a TRL trainer inside a draft: alone or with others, from a whole checkpoint, to a model directory.

Whatever was trained, with ZeRO or adapters or neither, the model that is kept is read from a checkpoint, by
one process: an undisturbed run and one that was killed after its last step end in the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from unirg import artifact, checkpoint
from unirg.artifact import Artifact, Draft, open_artifact
from unirg.config import Config, operational
from unirg.errors import UserError
from unirg.metrics import catalog
from unirg.training import distributed
from unirg.training.checkpoints import PREFIX, Checkpoints, Whole
from unirg.training.trainjob import TrainJobConfig

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import Trainer

STATE = "trainer_state.json"
"""transformers' name for the step and the history in a checkpoint."""
TRY_AGAIN = os.EX_TEMPFAIL
"""Exit code after SIGTERM with a checkpoint saved: whoever started the process starts it again."""


class LoRA(Config):
    """Low-rank adapters (arXiv 2106.09685) in place of full fine-tuning; the export is merged."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update of one matrix."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of what enters an adapter."""
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Ends of the names of the adapted matrices; the default is every one of the language model."""


class TrainConfig(Config):
    """What SFT and GRPO have in common."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay after warm-up; the paper leaves it open."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimiser steps of linear warm-up; the paper leaves it open."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's; the paper leaves it open."""
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    """AdamW's second decay; PyTorch's default."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm (transformers' default)."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training studies; `max_steps` ends it earlier."""
    max_steps: int = Field(default=-1, ge=-1)
    """Optimiser steps; -1 = as many as `epochs` says."""
    micro_batch: int = Field(ge=1)
    """Sequences in one forward pass of one process."""
    prior_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the studies with a prior that are shown with its image and report (longitudinal input)."""
    bf16: bool = False
    """Train in bfloat16 with fp32 optimiser state."""
    gradient_checkpointing: bool = False
    """Trade a second forward pass for activation memory."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of a process: part of the identity, as it changes the order of floating-point sums."""
    seed: int = 0
    """Of data order, dropout and sampling."""
    processes: int = Field(default=1, ge=1)
    """Processes that train together; a micro-batch is of one of them."""
    resume_processes: int | None = operational(None, ge=1)
    """Processes that go on with a training which `processes` began, after machines were lost or won: the same
    data in the same order, other random numbers; none = as many. No training begins with another number."""
    zero: Literal[0, 2, 3] = 0
    """DeepSpeed's ZeRO stage: 2 splits optimiser state and gradients over the processes, 3 the weights too;
    0 = plain data parallelism."""
    offload: bool = False
    """Keep the optimiser's state in the host's memory (ZeRO)."""
    lora: LoRA | None = None
    """Train low-rank adapters; none = every weight."""
    validate_steps: int = Field(default=0, ge=0)
    """Optimiser steps between validations; 0 = none."""
    validation_studies: int = Field(default=1024, ge=1)
    """Studies of the validation split in one validation (the paper: 1,024)."""
    validation_scores: tuple[str, ...] = Field(
        default=("bleu2", "bertscore", "sembscore", "radgraph", "radcliq_v1"), min_length=1
    )
    """Scores (`unirg metrics list`) of the validation's greedy reports, none of a judge; the default is
    RadCliQ-v1 with its parts."""
    validation_tokens: int = Field(default=512, ge=8)
    """A longer greedy report is cut; the paper leaves it open."""
    launch: Literal["local", "trainjob"] = operational("local")
    """Who starts the processes where torchrun has not: this machine, or a cluster as a TrainJob."""
    trainjob: TrainJobConfig | None = operational(None)
    """Where and with what the TrainJob runs."""
    save_steps: int = operational(50, ge=1)
    """Optimiser steps between checkpoints: what a crash can cost."""
    export: Literal["last", "best"] = "last"
    """Weights that become the artifact: the last step's, or those of the best validation by RadCliQ-v1."""
    kept: int = operational(2, ge=1)
    """Newest checkpoints kept, beside the best by the validation's RadCliQ-v1; the second is there for a
    crash while the newest is being written."""

    @model_validator(mode="after")
    def _what_needs_what(self) -> TrainConfig:
        if self.offload and not self.zero:
            raise ValueError("offload needs ZeRO: set zero to 2 or 3")
        if self.export == "best" and not self.validate_steps:
            raise ValueError("export = best needs validations: set validate_steps")
        if self.export == "best" and "radcliq_v1" not in self.validation_scores:
            raise ValueError("export = best needs radcliq_v1 among validation_scores")
        catalog.check(self.validation_scores)
        for score in catalog.with_parts(self.validation_scores):
            if score.scorer == catalog.JUDGE:
                raise ValueError(f"validation_scores names {score.name}, which needs a judge: leave it out")
        if self.launch == "trainjob" and not self.trainjob:
            raise ValueError("launch = trainjob needs its settings: set trainjob.image")
        return self

    @property
    def started_processes(self) -> int:
        """How many a launcher starts."""
        return self.resume_processes or self.processes


def prepare(config: TrainConfig) -> None:
    """Set the process up before torch does any work.

    Raises:
        UserError: ZeRO without torchrun's environment.
    """
    checkpoint.quiet()
    import torch
    from transformers import set_seed

    if config.zero:
        if not distributed.started():
            raise UserError(f"zero = {config.zero} needs torchrun: start it with `unirg train`")
        if not has_gpu():
            distributed.without_compiler()
    torch.set_num_threads(config.threads)
    set_seed(config.seed)


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def device() -> str:
    """Where this process computes: its GPU by number, as each new thread would begin on the first."""
    import torch

    return f"cuda:{torch.cuda.current_device()}" if has_gpu() else "cpu"


class _Following(Draft):
    """A draft of rank 0, as the other processes see it."""

    def commit(self, counts: Mapping[str, int | float | str] | None = None) -> Artifact:
        """Wait until rank 0 has committed."""
        self.committed = open_artifact(distributed.agreed(""))
        if distributed.leads_machine():  # rank 0 cleans up its own
            shutil.rmtree(self.work, ignore_errors=True)
        return self.committed


@contextmanager
def draft(
    store: str, stage: str, version: int, config: TrainConfig, inputs: Mapping[str, Artifact | str]
) -> Iterator[Draft]:
    """`artifact.draft` for all processes of a training: rank 0 alone holds it and commits.

    Raises:
        StorageError: the store cannot be read or written.
    """
    distributed.join()
    if distributed.rank() == 0:
        with artifact.draft(store, stage, version, config, inputs) as held:
            was_there = held.committed is not None
            distributed.agreed((held.uri, held.key, held.work.name, was_there))
            yield held
            if held.committed:
                if not was_there:
                    distributed.agreed(held.uri)
                Checkpoints.of(held, config.kept).remove_copies()
        return
    uri, key, name, was_there = distributed.agreed(("", "", "", False))
    work = artifact.work_root(uri.rsplit("/", 2)[0]) / name
    committed = open_artifact(uri) if was_there else None
    followed = _Following(uri, stage, version, key, config, inputs, work, committed)
    if not was_there:
        followed.scratch.mkdir(parents=True, exist_ok=True)
    yield followed


def arguments(config: TrainConfig, draft: Draft) -> dict[str, Any]:
    """The transformers arguments that both trainers share, with the checkpoint to go on from.

    Raises:
        UserError: another number of processes than `processes` begins a training. (One may go on with it:
            where a machine is lost.)
    """
    checkpoints = Checkpoints.of(draft, config.kept)
    found = checkpoints.newest(draft.stage)
    _check_processes(config, found, draft.stage)
    universal = bool(config.zero and found and found.processes != distributed.processes())
    if found and universal:
        if distributed.leads_machine():
            distributed.to_universal(checkpoints.path(found))
        distributed.gathered(None)
    return {
        "output_dir": str(checkpoints.folder),
        "resume_from_checkpoint": str(checkpoints.path(found)) if found else None,
        "deepspeed": distributed.deepspeed(config, universal),
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule if config.schedule != "constant" else "constant_with_warmup",
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "adam_beta2": config.adam_beta2,
        "max_grad_norm": config.max_grad_norm,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.micro_batch,
        "bf16": config.bf16,
        "gradient_checkpointing": config.gradient_checkpointing,
        "use_cpu": not has_gpu(),
        "seed": config.seed,
        "save_strategy": "no",  # `callbacks.Saver` says when
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        # A worker whose socket does not fit a long TMPDIR dies, and the trainer waits for it for ever.
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
    }


def _check_processes(config: TrainConfig, found: Whole | None, what: str) -> None:
    now = distributed.processes()
    if now != config.processes and not found:
        raise UserError(
            f"processes = {config.processes}, but {now} began this training: start it with `unirg train` and "
            f"without resume_processes, or set processes={now}"
        )
    if found and found.processes != now and distributed.rank() == 0:
        _say(
            f"{what}: {now} go on with what {found.processes} processes began: the same data in the same "
            "order, other random numbers"
        )


def accumulation(batch: int, micro_batch: int) -> int:
    """Micro-batches of one process that make one optimiser step.

    Raises:
        UserError: the micro-batches of all processes do not divide the batch.
    """
    together = micro_batch * distributed.processes()
    if batch % together:
        raise UserError(f"batch_size = {batch} is no multiple of micro_batch x processes = {together}")
    return batch // together


def adapters(config: TrainConfig) -> LoraConfig | None:
    """The trainers' `peft_config`; none trains every weight."""
    if config.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=list(config.lora.targets),
        task_type="CAUSAL_LM",
    )


def train(trainer: Trainer, draft: Draft, what: str) -> int:
    """Train to the end, from `arguments`' checkpoint if there is one; leave model and log in `draft.out`.

    Returns:
        The optimiser steps of the whole training.

    Raises:
        UserError: a loss or gradient that is not finite; the step and the remedy are named.
        SystemExit: with `TRY_AGAIN`, after SIGTERM and a saved checkpoint.
    """
    from transformers import PrinterCallback, TrainerState

    from unirg.training.callbacks import Mender, Saver, Watch

    config = draft.config
    assert isinstance(config, TrainConfig)
    checkpoints = Checkpoints.of(draft, config.kept)
    saver = Saver(what, checkpoints, config.save_steps, config.validate_steps)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Watch(what))
    trainer.add_callback(saver)
    if config.zero == 3 and trainer.args.deepspeed["checkpoint"]["load_universal"]:
        trainer.add_callback(Mender(config.weight_decay))
    last = trainer.args.resume_from_checkpoint
    state = TrainerState.load_from_json(f"{last}/{STATE}") if last else None
    # A run that was killed between its last step and the commit has nothing to train; TRL would, a step.
    if not state or state.global_step < state.max_steps:
        with saver.heeding_sigterm():
            trainer.train(resume_from_checkpoint=last)
        state = trainer.state
    if saver.stopped:
        print(
            f"{what}: saved at step {state.global_step}; the same command goes on",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(TRY_AGAIN)
    if distributed.rank() == 0:
        source = checkpoints.folder / f"{PREFIX}{state.global_step}"
        if config.export == "best":
            best = checkpoints.best(what)
            if best is None:
                raise UserError(
                    f"{what}: export = best, and no whole checkpoint has a validation score: look why "
                    "validation gave none, or set export=last"
                )
            source = checkpoints.path(best)
        _export(trainer, config, source, draft.out / checkpoint.MODEL)
        log = draft.out / checkpoint.LOG
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(json.dumps(entry) + "\n" for entry in state.log_history))
    return int(state.global_step)


def _export(trainer: Trainer, config: TrainConfig, source: Path, target: Path) -> None:
    """Write the model directory of one checkpoint, its adapters merged."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config
    from transformers.trainer_utils import align_special_tokens

    unset_hf_deepspeed_config()  # else ZeRO-3 would wait for the others to load their part
    if config.lora:
        from peft import PeftModel

        base = trainer.accelerator.unwrap_model(trainer.model).get_base_model().name_or_path
        model = PeftModel.from_pretrained(checkpoint.load_model(base), str(source)).merge_and_unload()
    else:
        model = checkpoint.load_model(source)
    align_special_tokens(model, trainer.processing_class)  # as training begins by doing
    checkpoint.save(model, trainer.processing_class, target)


def policy_of(parent: Artifact) -> tuple[Any, Any]:
    """(model in training mode, processor) of a checkpoint artifact."""
    if distributed.leads_machine():
        _ = parent.directory  # one process brings it here
    distributed.gathered(None)
    directory = parent.directory / checkpoint.MODEL
    model = checkpoint.load_model(directory)
    return model.train(), checkpoint.load_processor(directory)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
