"""Processes that train together under torchrun's environment, and DeepSpeed's settings.

Without that environment a process is a group of one, and nothing here touches torch. What the processes tell
each other here (decisions, digests, a wish to stop) goes over gloo; gradients over NCCL where there are GPUs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from unirg.training.settings import TrainConfig

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)
"""How long a process waits for another: a large checkpoint is written and copied in between."""


def started() -> bool:
    """Whether torchrun (or what sets its variables) started this process."""
    return "RANK" in os.environ


def rank() -> int:
    """This process's number among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads_machine() -> bool:
    """Whether this process does what one process of each machine does: digests, copies."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def join() -> None:
    """Meet the other processes; a second call does nothing."""
    if not started():
        return
    import torch
    from torch import distributed

    if distributed.is_initialized():
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:  # accelerate would name it cpu:1, to which torch.load brings nothing
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=TIMEOUT)


def leave() -> None:
    """Part from the others in good order."""
    if started():
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def agreed(value: T) -> T:
    """Rank 0's value, in every process."""
    if processes() == 1:
        return value
    from torch import distributed

    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: T) -> list[T]:
    """Every process's value, by rank; no process goes on before all have come here."""
    if processes() == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * processes()
    distributed.all_gather_object(found, value)
    return found


def any_of(flag: bool) -> bool:
    """Whether it is true in one process at least; cheap enough for every step."""
    if processes() == 1:
        return flag
    import torch
    from torch import distributed

    told = torch.tensor(int(flag))
    distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return bool(told.item())


def without_compiler() -> None:
    """Keep DeepSpeed on a CPU from compiling its shared-memory collectives; call before it meets the others.

    gloo gives the same losses, needs no compiler, and does not abort now and then when it ends (STACK: SFT).
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # ZeRO-3 wants DeepSpeed's own group before transformers parses its configuration.
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


def deepspeed(config: TrainConfig, universal: bool) -> dict[str, Any] | None:
    """DeepSpeed's configuration; none for plain data parallelism.

    Args:
        universal: the checkpoint to go on from was converted by `to_universal`.
    """
    if not config.zero:
        return None
    zero: dict[str, Any] = {"stage": config.zero}
    if config.zero == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # its own for the CPU is faster, and wants a compiler
        "bf16": {"enabled": config.bf16},
        "gradient_clipping": config.max_grad_norm,
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "checkpoint": {"load_universal": universal},
    }


def to_universal(checkpoint: Path) -> None:
    """Add to a checkpoint of ZeRO the form that any number of processes reads.

    Optimiser state lies split by process in it; DeepSpeed refuses another number of them. Machines that share
    the folder may do this at once: the first to be done counts.
    """
    from deepspeed.checkpoint import ds_to_universal

    tag = (checkpoint / "latest").read_text().strip()
    target = checkpoint / f"{tag}_universal"
    if target.is_dir():
        return
    aside = checkpoint / f".universal-{rank()}"
    shutil.rmtree(aside, ignore_errors=True)
    settings = argparse.Namespace(
        input_folder=str(checkpoint / tag),
        output_folder=str(aside / target.name),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # ours carries the artifact's URI alone
        ds_to_universal.main(settings)
    named = "latest_universal"  # by which DeepSpeed finds the folder
    (aside / named).replace(checkpoint / named)
    try:
        (aside / target.name).rename(target)
    except OSError:
        if not target.is_dir():
            raise
    shutil.rmtree(aside)


def mend(optimizer: Any, weight_decay: float) -> None:
    """Put right what ZeRO-3 does wrong as it reads the universal form (DeepSpeed 0.19.8).

    It gives all groups of weights one and the same step counter, which then counts a step once for each, and
    the first group's weight decay to the other, of norms and biases.
    """
    while hasattr(optimizer, "optimizer"):  # wrapped by accelerate, transformers and DeepSpeed
        optimizer = optimizer.optimizer
    for state in optimizer.state.values():
        state["step"] = state["step"].clone()
    for group, decay in zip(optimizer.param_groups, (weight_decay, 0.0), strict=True):
        group["weight_decay"] = decay
