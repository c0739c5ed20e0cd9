"""What an evaluation could not compute is said with the remedy."""

from __future__ import annotations

import re

import numpy as np

from unirg import config
from unirg.evaluation import scores
from unirg.evaluation.absent import absent, lines
from unirg.evaluation.candidates import SETTINGS, System
from unirg.evaluation.scores import Scores
from unirg.metrics import catalog
from unirg.metrics.catalog import CATALOG
from unirg.metrics.weights_fetch import known
from unirg.study import Study
from unirg.training.scorers import WeightsConfig


def made(asked: list[str], **values: float) -> Scores:
    """One study, one system, the scores that are named."""
    study = Study(corpus="c", study_id="s", patient_id="p", institution="i", findings="F")
    system = System("one", "policy", {"report": {}, "findings": {}}, {}, "")
    found = Scores([study], [system], scores.metrics(asked, {}), {"report": ["F"], "findings": ["F"]})
    for setting in SETTINGS:
        for name in found.metrics:
            found.values["one", setting, name] = np.array([values.get(name, np.nan)])
    return found


def test_every_score_is_either_there_or_explained() -> None:
    found = {record["metric"]: record for record in absent(made(["bleu2", "rouge_l"], bleu2=0.5))}
    assert found.keys() == CATALOG.keys() - {"bleu2"}
    assert all(record["why"] and record["how"] for record in found.values())
    assert "no study has it" in found["rouge_l"]["why"]
    assert found["bleu4"]["how"] == "add bleu4 to scores"
    assert found["errors_significant"]["how"] == "set judge_url and judge_model to a language model's"
    for scorer in ("radgraph", "bertscore", "chexbert"):
        assert scorer in found["radcliq_v1"]["why"]
        assert scorer in found["radcliq_v1"]["how"]
    for record in found.values():
        for settings in re.findall(r"make (\S+) '(\S+)'", record["how"]):
            collected = config.load(WeightsConfig, None, settings)
            assert collected.source == "hub"
            assert set(known(collected.scorers)) <= set(catalog.scorers([record["metric"]]))
    assert "fetch radgraph-xl, then unirg weights make source=hub" in found["radgraph_xl"]["how"]


def test_a_score_in_one_setting_or_derived_is_not_absent() -> None:
    some = made(["bleu2"])
    some.values["one", "findings", "bleu2"][:] = 0.1
    names = {record["metric"] for record in absent(some, ["radcliq_v1"])}
    assert names == CATALOG.keys() - {"bleu2", "radcliq_v1"}


def test_scores_with_one_remedy_share_a_line() -> None:
    found = absent(made(["bleu2"], bleu2=0.5))
    told = lines(found)
    assert len(told) == len({(each["why"], each["how"].partition("add ")[0]) for each in found})
    assert [line for line in told if "no judge" in line] == [told[-1]]
    assert told[-1].startswith("Errors per report; Significant errors per report; False finding; ")
    assert told[0] == (
        "BLEU-4; ROUGE-L were not computed: it was not asked for, and needs no weights; "
        "add bleu4, rouge_l to scores"
    )
    assert [line for line in told if line.startswith("BERTScore was not computed: it needs the weights of")]
    assert all(any(each["label"] in line for line in told) for each in found)
