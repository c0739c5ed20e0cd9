"""Recipes of prompts: ours to the byte, the comparators' as published; answers read as they were meant."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture

from tests import toy
from unirg import prompt_recipes, prompts
from unirg.config import shipped_recipes, validate
from unirg.errors import UserError
from unirg.prompt_recipes import Answer, Pictures, PromptRecipe, load, technique
from unirg.study import Image, Study

SHIPPED = [name.removeprefix("comparators/") for name in shipped_recipes() if name.startswith("comparators/")]
STUDY = Study(
    corpus="c",
    study_id="s1",
    patient_id="p1",
    institution="i",
    indication="Chest\n pain.",
    comparison="None.",
    findings="Clear lungs.",
    impression="Normal.",
    images=(Image(view="lateral"), Image(view="frontal", projection="PA", data=b"now")),
)
PRIOR = STUDY.model_copy(update={"study_id": "s0", "findings": "Small effusion.", "impression": None})
BARE = STUDY.model_copy(
    update={"indication": None, "comparison": None, "findings": None, "impression": None, "images": ()}
)
texts = st.none() | st.text(min_size=1, max_size=30).filter(str.strip)


def recipe(**fields: Any) -> PromptRecipe:
    return validate(PromptRecipe, {"user": [{"text": "x"}], **fields}, "test")


def said(chat: list[dict[str, Any]]) -> list[str]:
    return [part.get("text", "<image>") for message in chat for part in message["content"]]


@given(texts, texts, texts, texts, st.none() | st.tuples(texts, texts))
def test_the_recipe_unirg_asks_what_training_asks_to_the_byte(
    indication: str | None,
    comparison: str | None,
    findings: str | None,
    impression: str | None,
    before: tuple[str | None, str | None] | None,
) -> None:
    changes = {"indication": indication, "comparison": comparison, "findings": findings}
    study = STUDY.model_copy(update=changes | {"impression": impression})
    prior = before and STUDY.model_copy(update={"findings": before[0], "impression": before[1]})
    wanted = prompts.sections(study) or "both"
    ours = load("unirg")
    assert ours.wanted(study) == wanted
    assert json.dumps(ours.messages(study, prior or None)) == json.dumps(
        prompts.messages(study, wanted, prior or None)
    )
    assert ours.places(study, prior or None) == (["prior", "current"] if prior else ["current"])
    assert ours.sampling.parameters(7, 0.0, 3) == {"max_tokens": 7, "temperature": 0.0}
    assert ours.sampling.parameters(7, 0.5, 3) == {"max_tokens": 7, "temperature": 0.5, "seed": 3}
    assert ours.answer.read(" As \n written. ") == " As \n written. "


def test_there_is_a_recipe_for_every_comparator() -> None:
    assert set(SHIPPED) == {"unirg", "medgemma", "maira2", "gpt5", "copy_prior"}
    assert len({load(name).digest for name in SHIPPED}) == len(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("study", [STUDY, BARE])
@pytest.mark.parametrize("prior", [None, PRIOR])
def test_every_recipe_has_as_many_places_as_it_names_images(
    name: str, study: Study, prior: Study | None
) -> None:
    made = load(name)
    assert said(made.messages(study, prior)).count("<image>") == len(made.places(study, prior))
    assert made.source
    assert not any("{" in text for text in said(made.messages(study)))


def test_maira_2_is_asked_in_the_one_wording_that_it_knows() -> None:
    maira = load("maira2")
    ask = (
        " Provide a description of the findings in the radiology study in comparison to the prior frontal "
        "image. INDICATION: Chest pain. TECHNIQUE: PA and lateral views of the chest. COMPARISON: None."
    )
    assert said(maira.messages(STUDY)) == ["Given the current frontal image only", "<image>", ask]
    assert said(maira.messages(STUDY, PRIOR, lateral=True)) == [
        "Given the current frontal image",
        "<image>",
        " the current lateral image",
        "<image>",
        " and the prior frontal image",
        "<image>",
        " PRIOR_REPORT: Findings: Small effusion.",
        ask,
    ]
    assert maira.places(STUDY, PRIOR, lateral=True) == ["current", "lateral", "prior"]
    assert said(maira.messages(STUDY, lateral=True))[2:4] == [" and the current lateral image", "<image>"]
    assert said(maira.messages(BARE))[-1].endswith("INDICATION: N/A TECHNIQUE: N/A COMPARISON: N/A")
    assert maira.wanted(STUDY) == maira.wanted(BARE) == "findings"
    assert maira.answer.read(" Clear lungs.\n") == "Findings: Clear lungs."


def test_medgemma_has_the_model_cards_system_text_and_its_order() -> None:
    chat = load("medgemma").messages(STUDY)
    assert [message["role"] for message in chat] == ["system", "user"]
    assert said(chat)[0] == "You are an expert radiologist."
    assert said(chat)[1] == "Here is the context: Indication: Chest pain. Comparison: None."
    assert said(chat)[-1] == "<image>"
    assert said(load("medgemma").messages(BARE))[1].startswith("Describe this X-ray")


def test_gpt_5_gets_no_parameter_that_it_refuses() -> None:
    asked = load("gpt5").sampling.parameters(512, 0.0, 1)
    assert asked == {"max_completion_tokens": 4096, "reasoning_effort": "low"}


def test_copy_prior_is_told_the_prior_report_alone() -> None:
    copy = load("copy_prior")
    assert said(copy.messages(STUDY, PRIOR)) == ["Findings: Small effusion."]
    assert said(copy.messages(STUDY)) == [""]
    assert copy.with_priors
    assert copy.sees_prior
    assert not copy.shows


@pytest.mark.parametrize(
    ("answer", "report"),
    [
        ("Findings: Clear. Impression: Normal.", "Findings: Clear. Impression: Normal."),
        ("**FINDINGS:**\n\n* Clear.\n* No effusion.\n\n**IMPRESSION:**\nNormal.\n",
         "Findings: Clear. No effusion. Impression: Normal."),
        ("Here is the report.\n\n## Findings\nClear.\n\n## Impression\n1. Normal.",
         "Findings: Clear. Impression: 1. Normal."),
        ("Impression: Normal.\nFindings: Clear.", "Findings: Clear. Impression: Normal."),
        ("Clear lungs, no effusion.", "Findings: Clear lungs, no effusion."),
        ("**Conclusion**: Normal.", "Impression: Normal."),
        ("The findings are stable. Impression: these findings are old.",
         "Impression: these findings are old."),
        ("<unused94>thought: Findings: none<unused95>Findings: Clear.", "Findings: Clear."),
        ("Findings:\nImpression:", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_a_headed_answer_is_cut_into_its_sections(answer: str, report: str) -> None:
    assert load("medgemma").answer.read(answer) == report


def test_a_recipe_that_gives_one_section_leaves_the_other_out() -> None:
    answer = "Findings: Clear. Impression: Normal."
    assert Answer(form="headed", gives="findings").read(answer) == "Findings: Clear."
    assert Answer(form="headed", gives="impression").read(answer) == "Impression: Normal."
    assert Answer(form="plain", gives="impression").read("Normal.") == "Impression: Normal."


@given(st.text(alphabet=" *#:_-\n.<>finFINdgspresoI12", max_size=300))
def test_any_answer_is_read(answer: str) -> None:
    assert isinstance(load("medgemma").answer.read(answer), str)


def test_the_digest_is_over_what_is_asked_and_not_over_the_words_about_it() -> None:
    plain = recipe()
    assert recipe(name="another", source="elsewhere").digest == plain.digest
    changed = [
        recipe(user=[{"text": "y"}]),
        recipe(system="x"),
        recipe(missing="-"),
        recipe(sampling={"max_tokens": 5}),
        recipe(answer={"form": "headed"}),
        recipe(pictures={"size": 256}),
        recipe(with_priors=True),
    ]
    assert len({one.digest for one in [plain, *changed]}) == len(changed) + 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"user": [{"text": "{indicaton}"}]}, "no placeholder {indicaton}"),
        ({"user": [{"text": "{"}]}, "brace"),
        ({"user": [{"text": "x", "when": ["pior"]}]}, "no condition pior"),
        ({"user": []}, "user"),
        ({"answer": {"drop": "("}}, "no regular expression"),
        ({"sistem": "x"}, "did you mean system"),
    ],
)
def test_a_broken_recipe_is_refused_with_the_key(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        recipe(**fields)


def test_images_are_sent_as_staged_unless_a_form_is_asked_for() -> None:
    png = toy.picture(1, 128)
    assert Pictures().made(png) is png
    with Picture.open(io.BytesIO(Pictures(format="jpeg", size=64).made(png))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (64, 64))


def test_the_technique_is_what_the_views_say() -> None:
    def views(*images: Image) -> str:
        return technique(STUDY.model_copy(update={"images": images}))

    assert views() == views(Image(view="other")) == ""
    assert views(Image(view="frontal")) == "Frontal view of the chest."
    assert views(Image(view="frontal", projection="AP")) == "AP view of the chest."


def test_a_recipe_of_ones_own_is_read_from_a_file(tmp_path: Any) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("user: [{image: current}, {text: 'Report.'}]\n")
    assert said(prompt_recipes.load(str(path)).messages(STUDY)) == ["<image>", "Report."]
    with pytest.raises(UserError, match="no recipe named medgema"):
        prompt_recipes.load("medgema")
