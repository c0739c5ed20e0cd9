"""Run a TRL trainer inside a draft: resume from a whole checkpoint, tell progress, keep the result.

A checkpoint counts as whole only with its marker, written after everything else: transformers resumes from
one with a missing optimiser state without a word, and then diverges (STACK: Resume).
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from unirg import checkpoint, telemetry
from unirg.artifact import Artifact, Draft
from unirg.config import Config, operational
from unirg.errors import UserError

if TYPE_CHECKING:
    from transformers import Trainer

MARKER = "complete"
STATE = "trainer_state.json"
"""transformers' name for the step and the history in a checkpoint."""


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
    save_steps: int = operational(50, ge=1)
    """Optimiser steps between checkpoints: what a crash can cost."""
    kept: int = operational(2, ge=1)
    """Newest checkpoints kept, beside the best by the validation's RadCliQ-v1; the second is there for a
    crash while the newest is being written."""

    @model_validator(mode="after")
    def _offload_of_what_zero_splits(self) -> TrainConfig:
        if self.offload and not self.zero:
            raise ValueError("offload needs ZeRO: set zero to 2 or 3")
        return self


def prepare(config: TrainConfig) -> None:
    """Set the process up before torch does any work."""
    if config.processes > 1 or config.zero or config.lora:
        raise UserError(
            "processes > 1, zero and lora cannot be trained with yet: leave them at their defaults"
        )
    checkpoint.quiet()
    import torch
    from transformers import set_seed

    torch.set_num_threads(config.threads)
    set_seed(config.seed)


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def arguments(config: TrainConfig, draft: Draft) -> dict[str, Any]:
    """The transformers arguments that both trainers share."""
    return {
        "output_dir": str(draft.scratch / "checkpoints"),
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
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": config.kept,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        # A worker whose socket does not fit a long TMPDIR dies, and the trainer waits for it for ever.
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
    }


def accumulation(batch: int, micro_batch: int) -> int:
    """Micro-batches of one process that make one optimiser step.

    Raises:
        UserError: the micro-batches of all processes do not divide the batch.
    """
    together = micro_batch * int(os.environ.get("WORLD_SIZE", "1"))
    if batch % together:
        raise UserError(f"batch_size = {batch} is no multiple of micro_batch x processes = {together}")
    return batch // together


def train(trainer: Trainer, draft: Draft, what: str) -> int:
    """Train to the end, from the last whole checkpoint if there is one; leave model and log in `draft.out`.

    Returns:
        The optimiser steps of the whole training.

    Raises:
        UserError: a loss or gradient that is not finite; the step and the remedy are named.
    """
    from transformers import PrinterCallback, TrainerState
    from transformers.trainer_utils import align_special_tokens

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_watch(what))
    last = last_whole(Path(trainer.args.output_dir))
    state = TrainerState.load_from_json(f"{last}/{STATE}") if last else None
    if last and state and state.global_step >= state.max_steps:
        # The last run was killed between its last step and the commit; TRL would train a step more.
        trainer.model.load_state_dict(checkpoint.load_model(last).state_dict())
        align_special_tokens(trainer.model, trainer.processing_class)  # as training begins by doing
    else:
        trainer.train(resume_from_checkpoint=last)
        state = trainer.state
    model = trainer.accelerator.unwrap_model(trainer.model)
    checkpoint.save(model, trainer.processing_class, draft.out / checkpoint.MODEL)
    log = draft.out / checkpoint.LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(json.dumps(entry) + "\n" for entry in state.log_history))
    return int(state.global_step)


def last_whole(folder: Path) -> str | None:
    """The newest checkpoint whose files are all there at their full size; torn ones are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    while found:
        newest = found.pop()
        if _is_whole(newest):
            return str(newest)
        shutil.rmtree(newest)
    return None


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return bool(sizes) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items()
    )


def mark_whole(folder: Path) -> None:
    """Write the marker: every file of the checkpoint with its size."""
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.name != MARKER
    }
    aside = folder / f".{MARKER}"
    aside.write_text(json.dumps(sizes))
    aside.replace(folder / MARKER)


def _watch(what: str) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Progress lines, the marker of whole checkpoints, and a stop at the first non-finite number."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.told = telemetry.Progress(what, state.max_steps, "steps", state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            for name in ("loss", "grad_norm"):
                value = logs.get(name)
                if value is not None and not math.isfinite(float(value)):
                    raise UserError(
                        f"{what}: {name} is {value} at step {state.global_step}: lower learning_rate or "
                        "check the data; the last checkpoint is kept"
                    )
            self.note = " ".join(
                f"{short} {float(logs[name]):.3f}"
                for name, short in (("loss", "loss"), ("reward", "reward"), ("entropy", "entropy"))
                if name in logs
            )
            if "loss" in logs:
                self.told.advance(state.global_step - self.told.done, self.note)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.told.finish()

    return Watch()


def policy_of(parent: Artifact) -> tuple[Any, Any]:
    """(model in training mode, processor) of a checkpoint artifact."""
    directory = parent.directory / checkpoint.MODEL
    model = checkpoint.load_model(directory)
    return model.train(), checkpoint.load_processor(directory)
