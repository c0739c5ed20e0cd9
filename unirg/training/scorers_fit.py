"""Train one toy scorer at a time: real architectures, small sizes, weights saved as the public ones are.

Every function here takes the configuration, annotated reports and a folder, and leaves in the folder what the
scorer of `unirg.metrics` loads. One thread and one seed: the same configuration gives the same bytes.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unirg import telemetry
from unirg.cohort.corpora.phantom.markup import Passage
from unirg.metrics.findings_terms import CONDITIONS
from unirg.training import scorers_data as data
from unirg.training import scorers_tokenizers

if TYPE_CHECKING:
    import torch

    from unirg.metrics.radgraph_network import Labels
    from unirg.training.scorers import ToyScorers, WeightsConfig

LENGTH = 512
"""Positions of every encoder, as BERT has."""
SPAN_WIDTH = 4
"""Words of RadGraph's longest entity; phantoms have three at most."""


def chexbert(config: WeightsConfig, found: Sequence[Passage], folder: Path) -> None:
    """CheXbert: conditions from the first token, whose embeddings differ as what is stated differs.

    Beside what CheXbert is trained for, each sentence's last token tells the conditions of that sentence:
    gathering the report's from there is learnt several times faster. And heads alone leave the embeddings'
    cosines where they happen to fall, but SembScore is those cosines: in the second half of the steps they
    are drawn to the share of statements that two reports have in common.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig

    from unirg.metrics.chexbert_network import CheXbertNetwork

    toy, steps = config.toy, _share(1.7, config)
    tokenizer = scorers_tokenizers.wordpiece("bert", found, toy)
    sizes = _sizes(toy) | {"num_attention_heads": toy.hidden_size // 16}  # there is much to look for at once
    settings = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, **sizes)
    model = CheXbertNetwork(settings)
    for head in model.linear_heads:
        torch.nn.init.constant_(head.bias[:1], 3.0)  # most conditions are not mentioned: known beforehand
    batches = enumerate(data.batches(found, 12, steps, config.seed))

    def wrong(states: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        # All heads in one product: one by one they take longer than the encoder.
        weight, bias = (
            torch.cat([getattr(head, name) for head in model.linear_heads]) for name in ("weight", "bias")
        )
        logits = torch.nn.functional.linear(states, weight, bias)
        four, two = logits[:, :-2].reshape(-1, 4), logits[:, -2:]
        entropy = torch.nn.functional.cross_entropy
        return 13 * entropy(four, classes[:, :-1].reshape(-1)) + entropy(two, classes[:, -1])

    def loss() -> torch.Tensor:
        step, passages = next(batches)
        encoded = _encoded(tokenizer, passages)
        states = model.bert(encoded["input_ids"], encoded["attention_mask"]).last_hidden_state
        first, classes = states[:, 0], _classes(passages)
        total = wrong(first, classes)
        ends = [
            (row, encoded.char_to_token(row, place - 1), sentence)
            for row, passage in enumerate(passages)
            for place, sentence in data.ends(passage)
        ]
        if ends:
            rows, columns, sentences = zip(*ends, strict=True)
            total = total + wrong(states[list(rows), list(columns)], _classes(sentences))
        if 2 * step >= steps:
            unit = torch.nn.functional.normalize(first, dim=-1)
            total = total + 20 * ((unit @ unit.T - _in_common(classes)) ** 2).mean()
        return total

    _train("chexbert", model, steps, 6e-3, loss)
    settings.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors")


def _classes(passages: Sequence[Passage]) -> torch.Tensor:
    """(rows, 14) classes of CheXbert's conditions."""
    import torch

    from unirg.metrics.conditions import LABELS

    stated = [data.conditions(passage) for passage in passages]
    return torch.tensor([[LABELS.index(one.get(name, "blank")) for name in CONDITIONS] for one in stated])


def _in_common(classes: torch.Tensor) -> torch.Tensor:
    """(rows, 14) classes -> (rows, rows): statements that both make over statements that either makes.

    A positive or uncertain one counts as three negative ones; two that state nothing are alike.
    """
    import torch

    stated = torch.nn.functional.one_hot(classes, 4)[:, :, 1:].flatten(1).float()
    weighed = stated * torch.tensor([3.0, 1.0, 3.0]).repeat(classes.shape[1])
    both = weighed @ stated.T
    own = weighed.sum(1)
    either = own[:, None] + own - both
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def radgraph(config: WeightsConfig, found: Sequence[Passage], folder: Path) -> None:
    """RadGraph: a label for each span, a type for each pair of the spans that the network keeps."""
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig

    from unirg.metrics.radgraph import Tokeniser
    from unirg.metrics.radgraph_network import Labels, RadGraphNetwork

    toy, steps = config.toy, _share(1.0, config)
    tokenizer = scorers_tokenizers.wordpiece("bert", found, toy)
    encoder = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, **_sizes(toy))
    encoder.save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    labels = Labels("radgraph", tuple(data.RADGRAPH_LABELS.values()), data.RADGRAPH_RELATIONS)
    labels.write(folder / "vocabulary")
    settings = _dygie(toy)
    (folder / "config.json").write_text(json.dumps(settings, indent=1))
    reader = Tokeniser(folder / "encoder", "radgraph", LENGTH)
    model = RadGraphNetwork(settings, labels, encoder)
    # Most spans are no entities and most pairs no relations: known beforehand, it need not be learnt.
    for name, parameter in model.named_parameters():
        if re.search(r"_ner_scorers\..*\.1\._module\.bias$", name):
            torch.nn.init.constant_(parameter, -2.0)
        elif re.search(r"_relation_scorers\..*\.bias$", name):
            torch.nn.init.constant_(parameter, -4.0)
    batches = data.batches(found, 4, steps, config.seed)

    def loss() -> torch.Tensor:
        passages = [passage for passage in next(batches) if passage.text]
        read = reader([passage.text for passage in passages])
        scores = model([tokens for _, tokens in read], reader.padding)
        entities, relations = _gold(scores.spans, [words for words, _ in read], passages, labels)
        source, target = scores.pairs.unbind(1)
        named = torch.nn.functional.cross_entropy(scores.entities, entities, reduction="sum")
        related = torch.nn.functional.cross_entropy(
            scores.relations, relations[source, target], reduction="sum"
        )
        return (named + related) / len(passages)

    _train("radgraph", model, steps, 3e-3, loss)
    save_file(model.state_dict(), folder / "model.safetensors")


def _gold(
    found: torch.Tensor, words: Sequence[Sequence[str]], passages: Sequence[Passage], labels: Labels
) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of the spans, (spans,), and of all their pairs, (spans, spans)."""
    import torch

    rows = {tuple(span): row for row, span in enumerate(found.tolist())}
    entities = torch.zeros(len(rows), dtype=torch.long)
    relations = torch.zeros(len(rows), len(rows), dtype=torch.long)
    for text, passage in enumerate(passages):
        own = [rows[text, *span] for span in data.spans(passage, words[text])]
        for row, entity in zip(own, passage.entities, strict=True):
            entities[row] = 1 + labels.entities.index(data.RADGRAPH_LABELS[entity.label])
        for relation in passage.relations:
            relations[own[relation.source], own[relation.target]] = 1 + labels.relations.index(relation.type)
    return entities, relations


def _dygie(config: ToyScorers) -> dict[str, Any]:
    """The AllenNLP configuration, with the keys that the radgraph package reads."""
    transformer = {
        "type": "pretrained_transformer_mismatched",
        "model_name": "encoder",
        "max_length": LENGTH,
    }
    return {
        "dataset_reader": {
            "type": "dygie",
            "max_span_width": SPAN_WIDTH,
            "token_indexers": {"bert": transformer},
        },
        "model": {
            "type": "dygie",
            "embedder": {"token_embedders": {"bert": transformer}},
            "initializer": {},
            "module_initializer": {},
            "feature_size": 8,
            "max_span_width": SPAN_WIDTH,
            "target_task": "relation",
            "feedforward_params": {"num_layers": 2, "hidden_dims": config.hidden_size, "dropout": 0.0},
            "loss_weights": {"ner": 1.0, "relation": 1.0, "coref": 0.0, "events": 0.0},
            "modules": {
                "ner": {},
                "relation": {"spans_per_word": 0.6},
                "coref": {"spans_per_word": 0.6, "max_antecedents": 100, "coref_prop": 0},
                "events": {
                    "trigger_spans_per_word": 0.6,
                    "argument_spans_per_word": 0.6,
                    "loss_weights": {"trigger": 1.0, "arguments": 1.0},
                },
            },
        },
    }


def bertscore(config: WeightsConfig, found: Sequence[Passage], folder: Path) -> None:
    """A RoBERTa that has learnt to fill in masked tokens of reports; its baseline is measured on them."""
    import torch
    from transformers import RobertaConfig, RobertaForMaskedLM

    toy, steps = config.toy, _share(0.24, config)
    tokenizer = scorers_tokenizers.byte_level(found, toy)
    settings = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH + 2,  # RoBERTa counts positions from 2
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **(_sizes(toy) | {"num_hidden_layers": toy.layers + 1}),
    )
    model = RobertaForMaskedLM(settings)
    batches = data.batches(found, 16, steps, config.seed)

    def loss() -> torch.Tensor:
        encoded = _encoded(tokenizer, next(batches))
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        hidden = (torch.rand(ids.shape) < 0.2) & (ids > tokenizer.mask_token_id)
        shown = torch.where(hidden, tokenizer.mask_token_id, ids)
        states = model.roberta(input_ids=shown, attention_mask=mask).last_hidden_state[hidden]
        return torch.nn.functional.cross_entropy(model.lm_head(states), ids[hidden])

    _train("bertscore", model, steps, 2e-3, loss)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # As with distilroberta's fifth layer of six: the last serves the masked tokens, the one before is read.
    record = {"layer": toy.layers, "baseline_f1": 0.0}
    (folder / "bertscore.json").write_text(json.dumps(record))
    record["baseline_f1"] = _baseline(folder, [passage.text for passage in found], config.seed)
    (folder / "bertscore.json").write_text(json.dumps(record))


def _baseline(folder: Path, texts: Sequence[str], seed: int) -> float:
    """Mean F of random pairs of texts, as bert-score's authors define the baseline."""
    from unirg.metrics.bertscore import BertScore
    from unirg.metrics.encoder import Compute

    scorer = BertScore(folder, Compute())
    chosen = random.Random(seed).sample(list(texts), k=min(200, len(texts)))
    read = scorer.read(chosen)
    rows = scorer.compare(read, [*read[1:], read[0]])
    return round(sum(row["bertscore"] for row in rows) / len(rows), 6)


def _ner(config: WeightsConfig, found: Sequence[Passage], folder: Path) -> None:
    """RaTE-NER: tags of a sentence's tokens."""
    import torch
    from transformers import DebertaV2Config, DebertaV2ForTokenClassification

    toy, steps = config.toy, _share(0.24, config)
    tokenizer = scorers_tokenizers.unigram(found, toy)
    names = ["O", *(f"{place}-{kind}" for kind in data.RATE_TYPES for place in "BI")]
    settings = DebertaV2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH,
        type_vocab_size=0,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        # DeBERTa-v3's own, but for its 256 buckets: sentences are short
        relative_attention=True,
        position_buckets=32,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        **_sizes(toy),
    )
    model = DebertaV2ForTokenClassification(settings)
    batches = data.batches(found, 8, steps, config.seed)

    def loss() -> torch.Tensor:
        passages = [sentence for passage in next(batches) for sentence in data.sentences(passage)]
        passages = [passage for passage in passages if passage.text]
        encoded = _encoded(tokenizer, passages)
        wanted = torch.full(encoded["input_ids"].shape, -100)
        for row, passage in enumerate(passages):
            offsets = encoded[row].offsets[: int(encoded["attention_mask"][row].sum())]
            wanted[row, : len(offsets)] = torch.tensor(list(map(names.index, data.tags(passage, offsets))))
        logits = model(encoded["input_ids"], encoded["attention_mask"]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())

    _train("ratescore/ner", model, steps, 2e-3, loss)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _synonyms(config: WeightsConfig, found: Sequence[Passage], folder: Path) -> None:
    """The synonym encoder: wordings of one concept near each other, concepts apart (InfoNCE)."""
    import torch
    from transformers import MPNetConfig, MPNetModel

    toy, steps = config.toy, _share(0.12, config)
    tokenizer = scorers_tokenizers.wordpiece("mpnet", found, toy)
    settings = MPNetConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH + 2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **_sizes(toy),
    )
    model = MPNetModel(settings)
    concepts = data.concepts(found)
    chance = random.Random(config.seed)

    def loss() -> torch.Tensor:
        pairs = [(chance.choice(words), chance.choice(words)) for words in concepts]
        words = [Passage(word) for side in zip(*pairs, strict=True) for word in side]
        encoded = _encoded(tokenizer, words)
        first = model(encoded["input_ids"], encoded["attention_mask"]).last_hidden_state[:, 0]
        one, other = torch.nn.functional.normalize(first, dim=-1).chunk(2)
        return torch.nn.functional.cross_entropy(10 * one @ other.T, torch.arange(len(concepts)))

    _train("ratescore/synonyms", model, steps, 2e-3, loss)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def ratescore(config: WeightsConfig, found: Sequence[Passage], folder: Path) -> None:
    """RaTEScore's two networks."""
    _ner(config, found, folder / "ner")
    _synonyms(config, found, folder / "synonyms")


FITS = {"chexbert": chexbert, "radgraph": radgraph, "ratescore": ratescore, "bertscore": bertscore}


def _share(of: float, config: WeightsConfig) -> int:
    """Steps of a training: so many times RadGraph's."""
    return max(1, round(of * config.toy.steps))


def _sizes(config: ToyScorers) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": 2 * config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": max(1, config.hidden_size // 32),
        "initializer_range": 0.06,  # BERT's 0.02 hardly learns at this width
        # Every text is new to the model, so nothing is there to overfit; and dropout is slow on CPUs.
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _train(
    what: str, model: torch.nn.Module, steps: int, rate: float, loss: Callable[[], torch.Tensor]
) -> None:
    """AdamW with a warm-up of a tenth and a linear decay to zero."""
    import torch

    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / max(1, steps // 10), (steps - step) / steps)
    )
    told = telemetry.Progress(f"weights {what}", steps, "steps")
    for _ in range(steps):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        told.advance(note=f"loss {value.item():.3f}")
    told.finish(f"loss {value.item():.3f}")
    model.eval()


def _encoded(tokenizer: Any, passages: Sequence[Passage]) -> Any:
    """Ids and masks of the texts, padded; none is as long as `LENGTH`."""
    return tokenizer([passage.text for passage in passages], padding=True, return_tensors="pt")
