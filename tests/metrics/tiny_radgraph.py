"""A small random RadGraph of the real architecture, in a directory as `unirg weights fetch` writes it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.metrics import tiny
from unirg.metrics.radgraph import Name, Tokeniser

ENTITIES = ("ANAT-DP", "OBS-DP", "OBS-DA", "OBS-U")
RELATIONS = ("modify", "located_at", "suggestive_of")


def texts(count: int, longest: int = 30) -> list[str]:
    """Random words; each text another, of one word to the longest."""
    choice = random.Random(0)
    return [" ".join(choice.choices(tiny.WORDS.split(), k=1 + i % longest)) for i in range(count)]


def vocabulary(directory: Path) -> int:
    """Write WordPiece's vocabulary: letters, marks, and every other word of the texts; returns its size."""
    letters = sorted({letter for letter in tiny.WORDS.lower() if letter != " "})
    words = sorted(set(tiny.WORDS.lower().replace(".", "").split()))[::2]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += [word for word in words if word not in pieces]
    (directory / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return len(pieces)


def settings(**changes: Any) -> dict[str, Any]:
    """The keys of the AllenNLP configuration that are read."""
    bert = {"model_name": "tiny", "max_length": changes.get("max_length", 64)}
    return {
        "dataset_reader": {"max_span_width": 3, "token_indexers": {"bert": bert}},
        "model": {
            "embedder": {"token_embedders": {"bert": bert}},
            "feature_size": 5,
            "max_span_width": 4,
            "feedforward_params": {"num_layers": 2, "hidden_dims": 24, "dropout": 0.4},
            "modules": {"coref": {}, "ner": {}, "relation": {"spans_per_word": 0.6}, "events": {}},
        },
    }


def write(directory: Path, name: Name = "radgraph", max_length: int | None = 64) -> Path:
    """Heads biased so that each label goes to 6% of spans, each type to 30% of pairs, or less where they
    compete; and, as in the public files, parts that RadGraph does not use."""
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig

    from unirg.metrics.radgraph_network import ENCODER, Labels, RadGraphNetwork

    torch.manual_seed(0)
    (directory / "encoder").mkdir(parents=True)
    config = settings(max_length=max_length)
    (directory / "config.json").write_text(json.dumps(config))
    labels = Labels(name, ENTITIES, RELATIONS)
    labels.write(directory / "vocabulary")
    size = vocabulary(directory / "encoder")
    encoder = BertConfig(**tiny.config(size, max_position_embeddings=80))
    encoder.save_pretrained(directory / "encoder")
    network = RadGraphNetwork(config, labels, encoder).eval()
    for path, parameter in network.named_parameters():
        if not path.startswith("_embedder") and path.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        tokens = Tokeniser(directory / "encoder", name, max_length)(texts(30))
        scores = network([found for _, found in tokens])
        tensors = network.state_dict()
        for head, found, share in (
            (f"_ner._ner_scorers.{name}__ner_labels.1._module.bias", scores.entities, 0.94),
            (f"_relation._relation_scorers.{name}__relation_labels.bias", scores.relations, 0.7),
        ):
            tensors[head] -= found[:, 1:].quantile(share, dim=0)
    unused = {
        f"{ENCODER}.embeddings.position_ids": torch.arange(80)[None],
        "_coref._mention_pruner._scorer.0._module._linear_layers.0.weight": torch.zeros(2, 2),
        "_events._distance_embedding.weight": torch.zeros(2, 2),
        "_ner._ner_scorers.other__ner_labels.1._module.weight": torch.zeros(2, 2),
    }
    save_file({**tensors, **unused}, directory / "model.safetensors")
    return directory
