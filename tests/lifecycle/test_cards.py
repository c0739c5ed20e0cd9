"""Model and data cards: what a run's own artifacts say, in a form that the hub's own library reads."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard, ModelCard

from tests.canary import CANARY
from tests.lifecycle.card_world import CardWorld, renamed, retold
from tests.lifecycle.gate_world import GateWorld
from unirg import cli
from unirg.cohort.combine import combine, parts
from unirg.cohort.reader import Cohort
from unirg.cohort.stage import StageConfig, stage
from unirg.cohort.withdrawal import withdraw
from unirg.errors import UserError
from unirg.evaluation import aggregates
from unirg.lifecycle.card_results import NO_NUMBER
from unirg.lifecycle.cards import data_card, model_card
from unirg.lifecycle.gate import sentences
from unirg.lifecycle.retention import gc


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> CardWorld:
    """A trained and evaluated model; tests that change it make their own."""
    return CardWorld.build(tmp_path_factory.mktemp("cards") / "store")


def told(card: str) -> str:
    """A card as it is read: without its front matter and the marks that keep markup away."""
    body = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    return re.sub(r"\\(.)", r"\1", body)


def model(card: str) -> Any:
    """The front matter of a model card, as the hub's library reads it."""
    return ModelCard(card).data


def dataset(card: str) -> Any:
    """The same of a data card."""
    return DatasetCard(card).data


def of(built: CardWorld, **more: Any) -> str:
    return model_card(built.grpo, built.store, **{"evaluation": built.evaluation, **more})


def test_the_hubs_library_reads_the_card_and_its_results(built: CardWorld) -> None:
    about = model(of(built, licence="apache-2.0"))
    assert (about.license, about.library_name) == ("apache-2.0", "transformers")
    assert (about.pipeline_tag, about.datasets) == ("image-text-to-text", ["phantom"])
    assert {"radiology", "toy"} <= set(about.tags)
    headline = aggregates.read(built.evaluation)["headline"]["grpo"]
    found = {(each.dataset_split, each.metric_type): each.metric_value for each in about.eval_results}
    assert found == {
        (split, metric): value["mean"]
        for split, values in headline.items()
        for metric, value in values.items()
        if value["mean"] is not None
    }
    assert {"test", "zero_shot"} == {split for split, _ in found}
    assert {each.dataset_type for each in about.eval_results} == {"phantom"}


def test_a_base_with_a_hub_id_is_named_and_a_folder_is_not(built: CardWorld) -> None:
    published = built.checkpoint("base", {"cohort": built.cohort}, source="Qwen/Qwen3-VL-8B-Instruct")
    card = model_card(built.tuned(published), built.store)
    assert model(card).base_model == "Qwen/Qwen3-VL-8B-Instruct"
    assert "It starts from Qwen/Qwen3-VL-8B-Instruct" in told(card)
    assert "What the published model that it starts from was trained on is not known here." in told(card)
    own = built.checkpoint("base", {"cohort": built.cohort}, source=f"/home/{CANARY}/weights")
    card = model_card(built.tuned(own), built.store)
    assert CANARY not in card
    assert "It starts from a model directory; whose weights those were is not known." in told(card)


def test_every_stage_is_told_with_its_settings_seeds_and_digests(built: CardWorld) -> None:
    card = told(of(built))
    for made in (built.base, built.sft, built.grpo):
        assert made.digest in card
    assert "| SFT | 60 | 7 | 3 |" in card
    assert "| GRPO 1 | 60 | 9 | 4 |" in card
    assert "| GRPO 2 | 60 | 9 | 5 |" in card
    assert "learning rate 5e-05; schedule constant; warm-up steps 0; batch 256" in card
    assert "rewards (bleu2 1, errors 0.5); KL weight 0.03" in card
    assert "judge.example" not in card
    assert "It was trained with these prompts" in card
    for name, version in built.grpo.manifest.software.items():
        assert f"- {name} {version}" in card


def test_the_data_is_told_by_corpus_institution_and_split(built: CardWorld) -> None:
    card = told(of(built))
    assert f"Cohort {built.cohort.digest[:16]}: phantom: test 60, train 60, zero_shot 60 studies." in card
    assert "| north | 60 | 30 | 0 | 90 |" in card
    assert "| harbour | 0 | 0 | 60 | 60 |" in card
    assert "Held out of training in them: harbour." in card
    assert "It was trained on drawn phantoms alone" in card
    assert "None of the studies that it learned from is withdrawn" in card


def test_numbers_stand_with_their_intervals_beside_the_baselines(built: CardWorld) -> None:
    card = told(of(built))
    value = aggregates.read(built.evaluation)["headline"]["grpo"]["zero_shot"]["bleu2"]
    assert f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" in card
    assert "| grpo | greedy, without priors | 60 |" in card
    assert "| most-frequent-report | baseline | 60 |" in card
    assert "Scorers with a model: none. Judge of clinical errors: none." in card
    assert "No judge counted clinical errors." in card
    assert "bootstrap by patient, 200 resamples" in card


def test_numbers_of_controls_and_samples_do_not_stand_for_the_model(built: CardWorld) -> None:
    found = retold(built.evaluation, systems={"grpo": {"temperature": 1.0}}, store=built.store)
    assert "| grpo | sampled at temperature 1.0, without priors |" in told(of(built, evaluation=found))
    found = retold(built.evaluation, systems={"grpo": {"permute_images": 1}}, store=built.store)
    card = of(built, evaluation=found)
    assert "images permuted, as a control" in told(card)
    assert "Subgroups were not compared." in told(card)
    assert model(card).eval_results is None
    assert "There are no headline numbers on the test split." in told(card)


def test_toy_scorers_and_the_offline_judge_are_named_wherever_their_numbers_are(built: CardWorld) -> None:
    found = retold(built.evaluation, {"scorers": "toy scorers", "judge": "offline-judge"}, store=built.store)
    card = of(built, evaluation=found)
    names = {each.metric_type: each.metric_name for each in model(card).eval_results}
    assert names["composite"] == "Composite reward (toy scorers, offline judge)"
    assert names["bleu2"] == "BLEU-2"
    assert "Scores with a model are by toy scorers" in told(card)
    assert "Errors were counted by the offline judge, a program of rules" in told(card)
    assert "| Composite reward (toy scorers, offline judge) ↑ |" in told(card)


def test_worse_subgroups_alarms_and_what_was_not_measured_are_told(built: CardWorld) -> None:
    values = {"bleu2": {"gap": {"gap": 0.3, "adjusted": 0.01, "in_sd": -0.8}}}
    same = {"bleu2": {"gap": {"gap": 0.1, "adjusted": 0.4, "in_sd": -0.3}}}
    levels = {
        "female": {"studies": 31, "values": {"grpo": values}},
        "other": {"too_small": True},
        "male": {"studies": 29, "values": {"grpo": same}},
    }
    group = {
        **{"split": "test", "corpus": "phantom", "setting": "report", "studies": 60},
        "attributes": {"sex": {"unknown": 4, "levels": levels}},
    }
    raised = [
        {"suite": "subgroups", "alarm": "gap", "system": "grpo", "sentence": "grpo is worse for women."},
        {"suite": "subgroups", "alarm": "gap", "system": "old", "sentence": "old is worse for men."},
    ]
    found = retold(
        built.evaluation, suites={"subgroups": {"groups": [group], "alarms": raised}}, store=built.store
    )
    card = told(of(built, evaluation=found))
    assert "| sex female | phantom, test | BLEU-2 | 0.300 | 0.80 | 31 |" in card
    assert "sex male" not in card
    assert "- grpo is worse for women." in card
    assert "old is worse" not in card
    assert "Too few studies to measure by sex: other (phantom, test)." in card
    assert "Studies that do not tell sex: 4 (phantom, test)." in card
    assert "The suite errors did not run: no judge counted errors." in card


def test_without_an_evaluation_nothing_is_claimed(built: CardWorld) -> None:
    card = model_card(built.grpo, built.store)
    assert model(card).eval_results is None
    assert "No evaluation was given: how good it is is not known." in told(card)
    assert "No verdict was given" in told(card)
    assert "It was not measured." in told(card)
    assert "license: unknown" in card


def test_an_evaluation_of_another_model_is_refused(built: CardWorld) -> None:
    with pytest.raises(UserError, match=r"did not measure .*sft.*: name one"):
        model_card(built.sft, built.store, built.evaluation)
    with pytest.raises(UserError, match=r"licence 'my own\\n' is not as the hub spells it"):
        of(built, licence="my own\n")


def test_a_checkpoint_that_only_its_predictions_name_is_found(built: CardWorld) -> None:
    without = {name: None for name in built.evaluation.manifest.inputs if name.startswith("checkpoint:")}
    found = retold(built.evaluation, store=built.store, inputs=without)
    assert "| grpo | greedy, without priors |" in told(of(built, evaluation=found))


def test_the_gates_sentences_stand_in_the_card(tmp_path: Path) -> None:
    world = GateWorld(tmp_path / "store")
    better = {"new": world.columns(0.6 + world.noise(1)), "old": world.columns(0.4 + world.noise(2))}
    labels = {name: world.states("Edema", 0.5) for name in ("", "new", "old")}
    verdict = world.judge(world.evaluation(better, labels=labels))
    new, old = (world.side(name).checkpoint for name in ("new", "old"))
    card = told(model_card(new, str(world.store), verdict=verdict))
    assert f"Verdict {verdict.digest[:16]}, with this model as challenger." in card
    for sentence in sentences(world.verdict(world.evaluation(better, labels=labels))):
        assert f"- {sentence}" in card
    assert "with this model as champion" in told(model_card(old, str(world.store), verdict=verdict))
    with pytest.raises(UserError, match=r"the verdict .* is on another model"):
        model_card(world.side("third").checkpoint, str(world.store), verdict=verdict)


def test_studies_withdrawn_since_are_counted_and_a_dropped_cohort_is_told(tmp_path: Path) -> None:
    own = CardWorld.build(tmp_path / "store", evaluated=False)
    withdraw(own.store, ["phantom/train000-0", "phantom/test000-0"])
    before = told(model_card(own.grpo, own.store))
    assert "1 of the studies that it learned from were withdrawn since." in before
    assert "2 of the studies that it holds were withdrawn since." in told(data_card(own.cohort))
    assert gc(own.store, drop_withdrawn=True).cohorts == [own.cohort.uri]
    after = told(model_card(own.grpo, own.store))
    assert "1 of the studies that it learned from were withdrawn since." in after
    assert f"Cohort {own.cohort.digest[:16]}, which was dropped since: phantom: test 60, train 60" in after


def test_a_lost_stage_is_said_to_be_unknown(tmp_path: Path) -> None:
    own = CardWorld.build(tmp_path / "store", evaluated=False)
    shutil.rmtree(own.base.uri)
    card = told(model_card(own.grpo, own.store))
    assert f"It starts from a stage that cannot be read any more (digest {own.base.digest[:16]})." in card
    assert f"| not known | {NO_NUMBER} | {NO_NUMBER} | not known |" in card
    assert "A part of its lineage cannot be read any more" in card


def test_the_data_card_has_the_cohorts_numbers_and_the_hubs_fields(built: CardWorld) -> None:
    text = data_card(built.cohort)
    about = dataset(text)
    assert (about.license, about.size_categories) == ("apache-2.0", ["n<1K"])
    assert about.task_categories == ["image-to-text"]
    card = told(text)
    assert "- Studies: 180" in card
    assert "| harbour | 0 | 0 | 60 | 60 |" in card
    for title in ("Splits", "Images by view", "Sex", "Age in years", "Records that did not become studies"):
        assert f"## {title}" in card
    assert "Near-duplicates across splits" in card
    assert "Phantoms, drawn by UniRG: no patient; Apache-2.0." in card
    assert "None of the studies that it holds is withdrawn" in card


def test_how_a_cohort_was_made_is_told_of_all_its_parts(tmp_path: Path) -> None:
    wanted = {"studies": 24, "size": 64, "workers": 1, "hold_out": ["valley"]}
    phantoms = stage(StageConfig.model_validate(wanted), str(tmp_path))
    both = combine(parts([f"train,zero_shot={phantoms.uri}"]), str(tmp_path))
    card = told(data_card(both))
    assert f"Cohort {both.digest[:16]} (phantom): Images are grey, 8 bits, 64 x 64 (stretch). " in card
    assert "It takes some splits of its parts." in card
    assert f"Cohort {phantoms.digest[:16]} (phantom): Images are grey" in card
    assert "divided whole, by a hash of their id (seed 0): 15% test, 5% validate." in card
    assert "Held out of training as zero_shot: valley." in card
    assert "Phantoms are drawn: there is nobody to identify." in card


@pytest.mark.parametrize(("mode", "done"), [("scrub", "are removed"), ("refuse", "are a reason to drop")])
def test_an_institutions_de_identification_is_told_and_its_small_counts_are_not(
    built: CardWorld, mode: str, done: str
) -> None:
    config = StageConfig.model_validate({"corpus": "institution", "institution": {"gate": {"mode": mode}}})
    found = renamed(built.cohort, built.store, config=config, corpus="north_clinic", sex="F")
    card = told(data_card(found))
    assert "Ids of studies and patients are keyed hashes; direct identifiers" in card
    assert done in card
    assert "Counts below 10 of an institution's patients are shown as &lt;10" in card
    assert "north_clinic: an institution's own data; the institution's own terms." in card
    trained = told(model_card(built.tuned(built.base, found), built.store))
    assert "Images were staged at 512 x 512 pixels, grey, 8 bits (stretch)." in trained
    assert '.convert("RGB").resize((512, 512))' in trained


def test_terms_of_data_under_an_agreement_are_told(built: CardWorld) -> None:
    found = renamed(built.cohort, built.store, corpus="mimic_cxr")
    text = data_card(found)
    assert dataset(text).license == "other"
    assert "mimic_cxr: MIMIC-CXR, PhysioNet; credentialed access, data use agreement." in told(text)
    assert "only as far as the agreement allows" in told(text)
    card = told(model_card(built.tuned(built.base, found), built.store))
    assert "only as far as the agreement allows" in card
    assert "drawn phantoms alone" not in card


def test_rexranks_sets_have_the_terms_of_their_corpora(built: CardWorld) -> None:
    text = data_card(renamed(built.cohort, built.store, corpus="rexrank_iu_xray"))
    assert dataset(text).license == "cc-by-nc-nd-4.0"


def test_no_text_of_a_report_no_patient_and_no_place_of_a_machine_is_in_a_card(built: CardWorld) -> None:
    studies = Cohort.open(built.cohort).studies()
    both = of(built) + data_card(built.cohort)
    assert any(study.findings and CANARY in study.findings for study in studies)  # planted
    assert CANARY not in both
    for study in studies:
        assert study.study_id not in both
        assert study.patient_id not in both
        assert str(study.findings) not in both
    assert built.store not in both
    assert "/tmp" not in both


HOSTILE = {
    "yaml": "a\n---\nlicense: mit\nb: !!python/object:os.system",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "link": "[click](https://evil.example) www.evil.example me@evil.example",
    "table": "a | b |\n| c | d `code` # head",
    "direction": "abc\N{RIGHT-TO-LEFT OVERRIDE}def\x00\x1b[31m",
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_names_show_as_they_are_written_and_change_nothing(built: CardWorld, name: str) -> None:
    found = retold(
        built.evaluation,
        {"scorers": name, "judge": name},
        renames={"grpo": name},
        store=built.store,
    )
    sft = built.tuned(built.base, judge_model=name, source=name)
    about: Mapping[str, Any] = model(of(built, evaluation=found)).to_dict()
    plain = model(of(built)).to_dict()
    assert about["license"] == "unknown"
    assert about.keys() == plain.keys()
    cohort = renamed(built.cohort, built.store, race=name, hold_out=name)
    texts = [of(built, evaluation=found), model_card(sft, built.store), data_card(cohort)]
    assert dataset(texts[2]).license == "apache-2.0"
    for text in texts:
        body = text.split("\n---\n", 1)[1]
        assert not re.search(r"<script|<img|(?<!\\)\[click|https://|www\.evil|me@evil", body)
        assert not any(mark in text for mark in "\N{RIGHT-TO-LEFT OVERRIDE}\x00\x1b")
        heads = [line for line in body.splitlines() if line.startswith("#")]
        assert not [head for head in heads if "head" in head]
        assert "\nlicense: mit" not in text


def test_the_same_artifacts_give_the_same_bytes(built: CardWorld) -> None:
    assert of(built) == of(built)
    assert data_card(built.cohort) == data_card(built.cohort)


def test_the_command_prints_the_card_of_either(built: CardWorld, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["card", *arguments])
        out = capsys.readouterr()
        return int(left.value.code or 0), out.out, out.err

    code, out, err = printed(built.cohort.uri)
    assert (code, out, err) == (0, data_card(built.cohort), "")
    code, out, err = printed(built.grpo.uri, "--evaluation", built.evaluation.uri, "--verdict", "none")
    assert (code, out) == (0, of(built))
    assert err == f"evaluation: {built.evaluation.uri}\nverdict: none\n"
    code, out, err = printed(built.cohort.uri, "--evaluation", "none")
    assert (code, out) == (2, "")
    assert "leave out --evaluation and --verdict" in err
    code, _, err = printed(built.evaluation.uri)
    assert code == 2
    assert "was made by stage evaluate; this needs base or sft or grpo or cohort" in err
