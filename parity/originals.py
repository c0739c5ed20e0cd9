"""Our directories of weights in the forms, and under the names, that the upstream packages look for.

`<root>/hub/<name>` are transformers directories that a process started there finds under their hub names, and
`<root>/cache` is a cache of downloads, for XDG_CACHE_HOME: so the packages run as they are, offline.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from unirg.metrics.radgraph_network import ENCODER

NER, SYNONYMS = "Angelakeke/RaTE-NER-Deberta", "FremyCompany/BioLORD-2023-C"
BERTSCORE = "distilroberta-base"
BERT = "bert-base-uncased"
_RADGRAPH = "radgraph/0.1.18"
"""Where that version of the package keeps its models below the cache."""


def write(root: Path, weights: Path) -> None:
    """All originals of the scorers' directories in `weights`."""
    hub, cache = root / "hub", root / "cache"
    for name, scorer in ((BERTSCORE, "bertscore"), (NER, "ratescore/ner"), (SYNONYMS, "ratescore/synonyms")):
        _link(weights / scorer, hub / name)
    _chexbert(weights / "chexbert", hub, cache)
    for scorer in ("radgraph", "radgraph-xl"):
        _radgraph(weights / scorer, hub, cache / _RADGRAPH / scorer)


def _link(directory: Path, name: Path) -> None:
    name.parent.mkdir(parents=True, exist_ok=True)
    name.symlink_to(directory.resolve(), target_is_directory=True)


def _chexbert(directory: Path, hub: Path, cache: Path) -> None:
    """chexbert.pth, with DataParallel's prefix, where f1chexbert and where RadEval's download look."""
    _link(directory, hub / BERT)
    tensors = load_file(directory / "model.safetensors")
    place = cache / "chexbert" / "chexbert.pth"
    place.parent.mkdir(parents=True)
    torch.save({"model_state_dict": {f"module.{name}": value for name, value in tensors.items()}}, place)
    repository = cache / "chexbert" / "models--StanfordAIMI--RRG_scorers"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "chexbert.pth").symlink_to(place)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


def _radgraph(directory: Path, hub: Path, place: Path) -> None:
    """The archive's files unpacked, and the encoder that its configuration names, with weights."""
    place.mkdir(parents=True)
    shutil.copy(directory / "config.json", place)
    shutil.copytree(directory / "vocabulary", place / "vocabulary")
    tensors = load_file(directory / "model.safetensors")
    torch.save(tensors, place / "weights.th")
    config = json.loads((directory / "config.json").read_text())
    encoder = hub / config["model"]["embedder"]["token_embedders"]["bert"]["model_name"]
    shutil.copytree(directory / "encoder", encoder)
    parts = {name.removeprefix(f"{ENCODER}."): value for name, value in tensors.items() if ENCODER in name}
    save_file(parts, encoder / "model.safetensors", metadata={"format": "pt"})
