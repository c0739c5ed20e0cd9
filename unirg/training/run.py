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
from typing import TYPE_CHECKING, Any

from unirg import artifact, checkpoint
from unirg.artifact import Artifact, Draft, open_artifact
from unirg.errors import UserError
from unirg.training import distributed
from unirg.training.checkpoints import PREFIX, Checkpoints, Whole
from unirg.training.settings import TrainConfig

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import Trainer

STATE = "trainer_state.json"
"""transformers' name for the step and the history in a checkpoint."""
TRY_AGAIN = os.EX_TEMPFAIL
"""Exit code after SIGTERM with a checkpoint saved: whoever started the process starts it again."""


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
