"""Small files in the form of the public checkpoints, in folders as the hub's repositories."""

from __future__ import annotations

import io
import json
import tarfile
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

from unirg.metrics import weights_fetch

CHECKPOINTS = "StanfordAIMI/RRG_scorers"
BERT = "google-bert/bert-base-uncased"
ENCODER = "microsoft/some-BERT"


def tokenizer(folder: Path, vocabulary: str = "vocab.txt") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "of": folder.name}))
    (folder / vocabulary).write_text("[PAD]\n[UNK]\nlung\n")


def archive(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def radgraph_members(encoder: object = ENCODER) -> dict[str, bytes]:
    config = {"model": {"embedder": {"token_embedders": {"bert": {"model_name": encoder}}}}}
    tensors = io.BytesIO()
    torch.save(OrderedDict({"_ner.weight": torch.arange(6.0).reshape(2, 3)}), tensors)
    return {
        "config.json": json.dumps(config).encode(),
        "weights.th": tensors.getvalue(),
        "vocabulary/ner_labels.txt": b"ANAT-DP\n",
        "training.log": b"not wanted",
    }


def write_originals(root: Path) -> Path:
    """Small files in the form of the public ones, in folders as the hub's repositories."""
    checkpoints = root / CHECKPOINTS
    checkpoints.mkdir(parents=True)
    bias = torch.arange(4.0)
    trained = {"module.bert.weight": torch.ones(2, 2).half(), "module.linear_heads.0.bias": bias}
    trained["module.linear_heads.1.bias"] = bias  # shares memory with the first
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}}
    torch.save(
        {"epoch": 3, "model_state_dict": OrderedDict(trained), "optimizer_state_dict": optimizer},
        checkpoints / "chexbert.pth",
    )
    for name in ("radgraph", "radgraph-xl"):
        archive(checkpoints / f"{name}.tar.gz", radgraph_members())
    tokenizer(root / ENCODER)
    for repository, vocabulary in (
        (BERT, "tokenizer.json"),
        ("distilbert/distilroberta-base", "tokenizer.json"),
        ("Angelakeke/RaTE-NER-Deberta", "tokenizer.json"),
        ("FremyCompany/BioLORD-2023-C", "vocab.txt"),
    ):
        tokenizer(root / repository, vocabulary)
        save_file({"w": torch.full((2,), float(len(repository)))}, root / repository / "model.safetensors")
    (root / BERT / "pytorch_model.bin").write_bytes(b"not wanted")
    return root


def fetch(name: str, to: Path, source: Path | str | None = None, accept: bool = True) -> Path:
    """As the command; the small files here are not the public ones, so their digest is taken as it is."""
    return weights_fetch.fetch(name, to, None if source is None else str(source), accept)


def files(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
