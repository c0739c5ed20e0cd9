"""The stages that made a checkpoint, from the base on, in words for its card: all read off their manifests.

What could name a person or a machine (the folder that a base was read from, the judge's address) is left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from unirg.artifact import Artifact

NAMES = {"base": "Base", "sft": "SFT", "grpo": "GRPO"}
SETTINGS = {
    **{"learning_rate": "learning rate", "schedule": "schedule", "warmup_steps": "warm-up steps"},
    **{
        "batch_size": "batch",
        "epochs": "epochs",
        "max_steps": "steps at most",
        "group_size": "rollouts a query",
    },
    **{"rewards": "rewards", "kl": "KL weight", "clip_low": "lower clip", "clip_high": "upper clip"},
    **{"loss": "loss", "advantage_scale": "advantages scaled by", "updates": "updates"},
    **{"passes": "passes", "temperature": "temperature of rollouts"},
    **{"max_completion_tokens": "tokens of a rollout at most"},
    **{"judge_model": "judge", "weight_decay": "weight decay", "adam_beta2": "Adam's beta2"},
    **{"max_grad_norm": "gradient norm at most", "prior_share": "share of prompts with a prior study"},
    **{"lora": "LoRA", "bf16": "bfloat16", "zero": "ZeRO stage", "processes": "processes"},
    **{"export": "weights of the step", "dtype": "precision of the weights", "toy": "sizes", "seed": "seed"},
}
"""Settings that a card tells, of any stage, and their words."""
NONE: tuple[object, ...] = (None, False, {}, -1)
"""Values that say that a setting is not in use."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Stage:
    """One stage of a lineage."""

    name: str
    digest: str
    made: Artifact | None
    """None where it cannot be opened any more: its digest is all that is known."""

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.made.manifest.config) if self.made else {}

    def counted(self, name: str) -> str:
        """A count of its manifest, or a dash."""
        found = self.made.manifest.counts.get(name) if self.made else None
        return "\N{EN DASH}" if found is None else f"{found:,}"

    def settings(self) -> Iterator[str]:
        """`words value` of each of `SETTINGS` that it has and that is in use."""
        for name, words in SETTINGS.items():
            value = self.config.get(name)
            # By type, too: False == 0, and a weight of 0 is worth telling.
            unused = any(type(value) is type(none) and value == none for none in NONE)
            unused |= (name == "zero" and not value) or (name == "toy" and not is_toy([self]))
            if name in self.config and not unused:
                yield f"{words} {_value(value)}"


def stages(checkpoint: Artifact, behind: Sequence[Artifact]) -> list[Stage]:
    """What was done to a model, the first stage first.

    Args:
        behind: `provenance.ancestors` of the checkpoint.
    """
    known = {made.digest: made for made in behind}
    line: list[tuple[str, Artifact | None]] = [(checkpoint.digest, checkpoint)]
    seen = {checkpoint.digest}
    while (made := line[-1][1]) and (parent := made.manifest.inputs.get("parent")):
        if parent.digest in seen:  # forged: nothing is its own ancestor
            break
        seen.add(parent.digest)
        line.append((parent.digest, known.get(parent.digest)))
    line.reverse()
    kinds = Counter(made.manifest.stage for _, made in line if made)
    met: Counter[str] = Counter()
    found = []
    for digest, made in line:
        kind = made.manifest.stage if made else ""
        met[kind] += 1
        name = NAMES.get(kind, kind) if made else "not known"
        found.append(Stage(f"{name} {met[kind]}" if kinds[kind] > 1 else name, digest, made))
    return found


def hub_id(line: Sequence[Stage]) -> str:
    """The published model that a lineage starts from; empty where there is none, or it has no hub id."""
    source = line[0].config.get("source")
    return source if isinstance(source, str) and _HUB_ID.fullmatch(source) else ""


def is_toy(line: Sequence[Stage]) -> bool:
    """Whether it starts from a random-initialised policy of toy size."""
    return line[0].config.get("source") == "toy"


def origin(line: Sequence[Stage]) -> str:
    """Where the weights come from, in a sentence."""
    first = line[0]
    if first.made is None:
        return f"It starts from a stage that cannot be read any more (digest {first.digest[:16]})."
    parameters = first.made.manifest.counts.get("parameters")
    size = f", {parameters:,} parameters" if parameters else ""
    if is_toy(line):
        return f"It starts from a random-initialised policy of toy size with Qwen3-VL's architecture{size}."
    if named := hub_id(line):
        return f"It starts from {named}{size}."
    if first.config.get("source"):
        return f"It starts from a model directory{size}; whose weights those were is not known."
    return f"What it starts from is not known{size}."


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_value(each)}" for name, each in value.items()) + ")"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_value, value)) + ")"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
