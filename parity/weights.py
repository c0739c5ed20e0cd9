"""Weights that make parity mean something: real architectures, random encoders, heads fitted to reports.

The networks have the public ones' sizes, their weights come from a seed. A random encoder says little, so
that the last layers would predict one thing for everything: they are scaled and shifted over texts until
every class of every CheXbert head, and entities and relations in most reports, do come out.
Directories are laid out as `unirg weights fetch` does it; `parity.originals` gives them to the packages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2ForTokenClassification,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
)

from parity import vocabularies
from unirg.metrics.chexbert_network import CLASSES
from unirg.metrics.radgraph_network import Labels, RadGraphNetwork, Tokens

STEEP = 0.04
"""Spread of a random encoder's weights: twice the usual one, or its texts are too much alike."""
ENTITIES = ("ANAT-DP", "OBS-DP", "OBS-DA", "OBS-U")
RELATIONS = ("located_at", "modify", "suggestive_of")
ENTITY_SHARE, RELATION_SHARE = 0.006, 0.05
"""Of all spans for each label, and of all pairs of entities."""
TYPES = ("ABNORMALITY", "NON-ABNORMALITY", "DISEASE", "NON-DISEASE", "ANATOMY")
"""RaTE-NER's."""


@dataclass(frozen=True)
class Size:
    """Of the encoders."""

    layers: int = 12
    width: int = 768
    heads: int = 12

    @property
    def settings(self) -> dict[str, int]:
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "intermediate_size": 4 * self.width,
        }


BASE = Size()
DISTIL = Size(layers=6)


@dataclass(frozen=True)
class Sizes:
    """One for each scorer's encoders."""

    chexbert: Size = BASE
    radgraph: Size = BASE
    radgraph_xl: Size = BASE
    bertscore: Size = DISTIL
    ratescore: Size = BASE


TINY = Sizes(*[Size(layers, 48, 4) for layers in (2, 2, 2, 6, 2)])
"""For tests of these scripts."""
# ReXrank's four at their public size; of the other two some layers, which shows as much in less time.
PARITY = Sizes(radgraph_xl=Size(layers=3), ratescore=Size(layers=3))


def build(root: Path, texts: Sequence[str], sizes: Sizes, seed: int = 0) -> None:
    """Directories of all scorers below `root`, of a seed and the texts; nothing where they are there."""
    done = root / "done"
    if done.exists():
        return
    torch.manual_seed(seed)
    with torch.no_grad():
        chexbert(root / "chexbert", texts, sizes.chexbert)
        radgraph(root / "radgraph", texts, sizes.radgraph)
        radgraph(root / "radgraph-xl", texts, sizes.radgraph_xl)
        bertscore(root / "bertscore", texts, sizes.bertscore)
        ratescore_ner(root / "ratescore" / "ner", texts, sizes.ratescore)
        ratescore_synonyms(root / "ratescore" / "synonyms", texts, sizes.ratescore)
    done.touch()


def chexbert(directory: Path, texts: Sequence[str], size: Size) -> None:
    """Heads: random directions, each logit with mean 0 and deviation 1 over the texts."""
    vocabulary = vocabularies.bert(directory, texts)
    bert = BertModel(BertConfig(vocab_size=vocabulary, initializer_range=STEEP, **size.settings)).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    first = torch.cat([bert(**ids).last_hidden_state[:, 0] for ids in _batches(tokenizer, texts)])
    first -= _centre(bert, first)
    tensors = {f"bert.{name}": value for name, value in bert.state_dict().items()}
    for number, classes in enumerate(CLASSES):
        weight, bias = _standard(torch.randn(classes, size.width), first)
        tensors |= {f"linear_heads.{number}.weight": weight, f"linear_heads.{number}.bias": bias}
    bert.config.save_pretrained(directory)
    _save(tensors, directory)


def bertscore(directory: Path, texts: Sequence[str], size: Size) -> None:
    vocabulary = vocabularies.roberta(directory, texts)
    config = RobertaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=514,
        type_vocab_size=1,
        initializer_range=STEEP,
        **size.settings,
    )
    RobertaModel(config).save_pretrained(directory)
    layer = min(5, size.layers)
    (directory / "bertscore.json").write_text(json.dumps({"layer": layer, "baseline_f1": 0.8473319}))


def ratescore_ner(directory: Path, texts: Sequence[str], size: Size) -> None:
    """As DeBERTa-v3-base. Most tokens are outside of an entity, or one word would come with several types."""
    vocabulary = vocabularies.deberta(directory, texts)
    labels = ("O", *(f"{place}-{kind}" for kind in TYPES for place in "BI"))
    config = DebertaV2Config(
        vocab_size=vocabulary,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        max_relative_positions=-1,
        layer_norm_eps=1e-7,
        initializer_range=STEEP,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        **size.settings,
    )
    model = DebertaV2ForTokenClassification(config).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    states = [
        model.deberta(**ids).last_hidden_state[ids["attention_mask"].bool()]
        for ids in _batches(tokenizer, texts[:200])
    ]
    weight, bias = _standard(torch.randn(len(labels), size.width), torch.cat(states))
    bias[0] += 2.4
    model.classifier.weight.copy_(weight)
    model.classifier.bias.copy_(bias)
    model.save_pretrained(directory)


def ratescore_synonyms(directory: Path, texts: Sequence[str], size: Size) -> None:
    vocabulary = vocabularies.mpnet(directory, texts)
    config = MPNetConfig(
        vocab_size=vocabulary, max_position_embeddings=514, initializer_range=STEEP, **size.settings
    )
    model = MPNetModel(config).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    words = sorted({word for text in texts[:100] for word in text.split()})[:400]
    first = torch.cat([model(**ids).last_hidden_state[:, 0] for ids in _batches(tokenizer, words)])
    # Not all of it: with negative cosines, hardly found among real synonyms, RaTEScore is ill-conditioned.
    _centre(model, 0.7 * first)
    model.save_pretrained(directory)


def radgraph(directory: Path, texts: Sequence[str], size: Size) -> None:
    """Named as its directory; the spans that are kept for relations are mostly those that are entities."""
    name = directory.name
    vocabulary = vocabularies.bert(directory / "encoder", texts)
    bert = BertConfig(vocab_size=vocabulary, initializer_range=STEEP, **size.settings)
    bert.save_pretrained(directory / "encoder")
    config = allennlp_config(f"encoders/{name}")
    (directory / "config.json").write_text(json.dumps(config))
    labels = Labels(name, ENTITIES, RELATIONS)
    labels.write(directory / "vocabulary")
    network = RadGraphNetwork(config, labels, bert).eval()
    tensors = network.state_dict()
    for key, value in tensors.items():
        if "_linear_layers" in key and key.endswith("weight"):
            nn.init.kaiming_normal_(value, nonlinearity="relu")
    _prefer_short(tensors, name)
    tokens = _words(AutoTokenizer.from_pretrained(directory / "encoder"), texts[:60])
    _fit_radgraph(network, tensors, tokens)
    _save({**tensors, **_unused(2 * size.width + config["model"]["feature_size"], config)}, directory)


def _prefer_short(tensors: Mapping[str, Tensor], name: str) -> None:
    """Let a span's length count against it, in place: real entities are short, and reports share them."""
    widths = tensors["_endpoint_span_extractor._span_width_embedding.weight"]
    widths[:, 0] = torch.arange(len(widths))
    scorer = f"_ner._ner_scorers.{name}__ner_labels"
    # One unit of each hidden layer carries the length on and nothing else; the other units do without it.
    length = tensors[f"{scorer}.0._module._linear_layers.0.weight"].shape[1] - widths.shape[1]
    for layer, source in ((0, length), (1, 0)):
        weight = tensors[f"{scorer}.0._module._linear_layers.{layer}.weight"]
        weight[0], weight[:, source] = 0.0, 0.0
        weight[0, source] = 1.0
        tensors[f"{scorer}.0._module._linear_layers.{layer}.bias"][0] = 0.0
    tensors[f"{scorer}.1._module.weight"][:, 0] = -0.2


def _fit_radgraph(network: RadGraphNetwork, tensors: Mapping[str, Tensor], tokens: Sequence[Tokens]) -> None:
    """Scale and shift the last layers, in place: entities first, then what is kept, then relations."""
    name = network.labels.dataset
    ner, relation = f"_ner._ner_scorers.{name}__ner_labels", f"_relation.{{}}.{name}__relation_labels"
    pruner, last = relation.format("_mention_pruners") + "._scorer", relation.format("_relation_scorers")
    scores = network(tokens).entities[:, 1:]
    _rescale(tensors[f"{ner}.1._module.weight"], tensors[f"{ner}.1._module.bias"], scores, ENTITY_SHARE)
    for key in [key for key in tensors if key.startswith(f"{ner}.0.")]:
        tensors[key.replace(ner, pruner)].copy_(tensors[key])
    mentions, shift = tensors[f"{pruner}.1._module.weight"], tensors[f"{pruner}.1._module.bias"]
    mentions.zero_()
    shift.zero_()
    _rescale(tensors[f"{last}.weight"], tensors[f"{last}.bias"], network(tokens).relations[:, 1:], 0.5)
    mentions.copy_(0.3 * tensors[f"{ner}.1._module.weight"].mean(0, keepdim=True))
    scores = _between_entities(network(tokens))
    share = RELATION_SHARE / scores.shape[1]
    tensors[f"{last}.bias"].sub_(scores.quantile(1 - share, dim=0))


def _between_entities(found: Any) -> Tensor:
    """(pairs, types) scores of the pairs whose spans are both predicted entities."""
    entity = found.entities.argmax(1) > 0
    return found.relations[entity[found.pairs].all(1), 1:]


def _rescale(weight: Tensor, bias: Tensor, scores: Tensor, share: float) -> None:
    """Give each output deviation 1 over `scores`, and a positive value in a share of them; in place."""
    sample = scores[torch.randperm(len(scores))[: 1 << 16]]
    deviation = sample.std(0)
    weight.div_(deviation[:, None])
    bias.sub_(sample.quantile(1 - share, dim=0)).div_(deviation)


def _unused(span: int, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parts of DyGIE++ that RadGraph's file holds and its predictions do not use."""
    feature, hidden = config["model"]["feature_size"], config["model"]["feedforward_params"]["hidden_dims"]
    shapes = {
        "_coref._distance_embedding.weight": (10, feature),
        "_coref._f_network._linear_layers.0.weight": (span, 2 * span),
        "_coref._f_network._linear_layers.0.bias": (span,),
        "_events._distance_embedding.weight": (10, feature),
    }
    for part, width in (
        ("_coref._antecedent_feedforward._module", 3 * span + feature),
        ("_coref._mention_pruner._scorer.0._module", span),
    ):
        for layer, size in enumerate((width, hidden)):
            shapes[f"{part}._linear_layers.{layer}.weight"] = (hidden, size)
            shapes[f"{part}._linear_layers.{layer}.bias"] = (hidden,)
    for part in ("_coref._mention_pruner._scorer.1._module", "_coref._antecedent_scorer._module"):
        shapes |= {f"{part}.weight": (1, hidden), f"{part}.bias": (1,)}
    return {key: torch.zeros(shape) for key, shape in shapes.items()}


def allennlp_config(encoder: str) -> dict[str, Any]:
    """RadGraph's configuration: a span of up to 12 words, and relations among half as many spans as words."""
    bert = {"model_name": encoder, "max_length": 512}
    return {
        "dataset_reader": {
            "type": "dygie",
            "max_span_width": 12,
            "token_indexers": {"bert": {"type": "pretrained_transformer_mismatched", **bert}},
        },
        "model": {
            "type": "dygie",
            "embedder": {"token_embedders": {"bert": {"type": "pretrained_transformer_mismatched", **bert}}},
            "modules": {
                "coref": {"spans_per_word": 0.3, "max_antecedents": 100, "coref_prop": 0},
                "ner": {},
                "relation": {"spans_per_word": 0.5},
                "events": {
                    "trigger_spans_per_word": 0.3,
                    "argument_spans_per_word": 0.8,
                    "loss_weights": {"trigger": 0.2, "arguments": 1.0},
                },
            },
            "feature_size": 20,
            "max_span_width": 12,
            "target_task": "relation",
            "feedforward_params": {"num_layers": 2, "hidden_dims": 150, "dropout": 0.4},
            "loss_weights": {"ner": 0.2, "relation": 1.0, "coref": 0.0, "events": 0.0},
            "initializer": {},
            "module_initializer": {},
        },
    }


def _centre(model: Any, features: Tensor) -> Tensor:
    """Shift a model's last layer so that the features have mean 0, for else all cosines are near 1."""
    mean = features.mean(0)
    model.encoder.layer[-1].output.LayerNorm.bias.sub_(mean)
    return mean


def _standard(weight: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs, width) weights and their bias with which each output has mean 0 and deviation 1."""
    # Each feature's own deviation first, so that no few of them decide every class.
    weight = weight / features.std(0)
    outputs = features.double() @ weight.double().T
    return weight / outputs.std(0)[:, None].float(), (-outputs.mean(0) / outputs.std(0)).float()


def _batches(tokenizer: Any, texts: Sequence[str], rows: int = 8) -> Iterator[Any]:
    for start in range(0, len(texts), rows):
        yield tokenizer(
            list(texts[start : start + rows]),
            padding=True,
            truncation=True,
            max_length=512,
            return_tensors="pt",
        )


def _words(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """The texts split at white space: near enough to RadGraph's own splitting to fit its heads."""
    found = []
    for text in texts:
        words = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in text.split()]
        ids = [tokenizer.cls_token_id, *(piece for word in words for piece in word), tokenizer.sep_token_id]
        if len(ids) <= 512:
            found.append(Tokens([ids], [len(word) for word in words]))
    return found


def _save(tensors: Mapping[str, Tensor], directory: Path) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, directory / "model.safetensors")
