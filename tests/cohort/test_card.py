"""The cohort card: true counts, nothing of a report, no patient of an institution to be recognised."""

from __future__ import annotations

import base64
import io
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image as PIL

from tests.canary import CANARY
from tests.evaluation import browser
from unirg import artifact, storage
from unirg.artifact import ArtifactError
from unirg.cohort.card import write_card
from unirg.cohort.card_page import shown
from unirg.cohort.reader import INDEX, Cohort, Index, Shard
from unirg.cohort.stage import StageConfig, stage
from unirg.config import Config
from unirg.study import Image, Study, to_table

Rows = dict[str, dict[str, list[str]]]
"""Title of a table -> name of a row -> its cells."""
HOSTILE = "</td><script>alert(1)</script>|`#\N{RIGHT-TO-LEFT OVERRIDE}\nx"


class Read(HTMLParser):
    """Tables, elements and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.tables: Rows = {}
        self._cells: list[str] = []
        self._inside = ""
        self._title = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag == "h2":
            self._title = ""
        if tag == "tr":
            self._cells = []
        if tag in ("th", "td"):
            self._cells.append("")
        if tag in ("h2", "th", "td"):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h2", "th", "td"):
            self._inside = ""
        if tag == "tr":
            self.tables.setdefault(self._title, {})[self._cells[0]] = self._cells[1:]

    def handle_data(self, data: str) -> None:
        if self._inside == "h2":
            self._title += data
        elif self._inside:
            self._cells[-1] += data


def png(shade: int = 90) -> bytes:
    buffer = io.BytesIO()
    PIL.new("L", (64, 64), shade).save(buffer, "PNG")
    return buffer.getvalue()


def study(number: int, **fields: Any) -> Study:
    """Study n is of patient n // 2; every fourth one is for testing."""
    given: dict[str, Any] = {
        "corpus": "north",
        "study_id": f"s{number:04d}",
        "patient_id": f"p{number // 2:04d}",
        "institution": "north",
        "split": "test" if number // 2 % 4 == 0 else "train",
        "images": (Image(view="frontal", projection="PA", data=png()), Image(view="lateral")),
        "findings": f"Two words {CANARY}",
        "encounter": number % 2 + 1,
    }
    return Study(**(given | fields))


def made(store: Path | str, studies: list[Study], **index: Any) -> Cohort:
    """A cohort of these studies, a shard for each split."""
    with artifact.draft(str(store), "cohort", 1, Config(), {"corpus": repr(studies)}) as draft:
        shards = []
        for split in sorted({str(one.split) for one in studies}):
            rows = [one for one in studies if one.split == split]
            buffer = io.BytesIO()
            pq.write_table(to_table(rows), buffer, row_group_size=16)
            data = buffer.getvalue()
            shard = Shard(sha256=storage.sha256(data), bytes=len(data), split=split, studies=len(rows))
            storage.put_new(storage.join(str(store), shard.name), data)
            shards.append(shard)
        given: dict[str, Any] = {"corpus": studies[0].corpus, "hold_out": (), "dropped": {}}
        given |= {"account": {}, "duplicates": {}}
        (draft.out / INDEX).write_text(Index(**(given | index), shards=tuple(shards)).model_dump_json())
        return Cohort.open(draft.commit())


def card(cohort: Cohort, target: Path, images: bool = False) -> tuple[Read, str, str]:
    """The page as it reads, its source, and the Markdown."""
    write_card(cohort, target, images)
    html = (target / "card.html").read_text()
    return Read(html), html, (target / "card.md").read_text()


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    config = StageConfig(studies=40, size=64, workers=1, hold_out=("island",))
    return Cohort.open(stage(config, str(tmp_path_factory.mktemp("store"))))


# Counts


def test_the_counts_are_those_of_the_cohort(phantoms: Cohort, tmp_path: Path) -> None:
    read, html, markdown = card(phantoms, tmp_path)
    studies = phantoms.studies()
    splits = [name for name in ("train", "validate", "test", "zero_shot") if phantoms.studies(name)]
    by_split = [str(len(phantoms.studies(name))) for name in splits]
    assert read.tables["Corpora"]["phantom"] == [*by_split, str(len(studies))]
    assert sum(int(row[-1]) for name, row in list(read.tables["Institutions"].items())[1:]) == len(studies)
    for name, split in zip(splits, by_split, strict=True):
        patients = {one.patient_id for one in phantoms.studies(name)}
        assert read.tables["Splits"][name][:2] == [str(len(patients)), split]
    for sex in "FM":
        assert read.tables["Sex"][sex] == [str(sum(one.sex == sex for one in studies))]
    lengths = sorted(len(one.findings.split()) for one in studies if one.findings)
    n, p50, _, longest = read.tables["Words"]["findings"]
    assert (int(n), int(p50), int(longest)) == (len(lengths), lengths[(len(lengths) - 1) // 2], lengths[-1])
    firsts = sum(one.encounter == 1 for one in studies)
    assert sum(map(int, read.tables["Studies by their place in the patient's history"]["1"])) == firsts
    assert read.tables["Sources"]["phantom"][1] == "Apache-2.0"
    for rows in read.tables.values():
        for name, row in rows.items():
            assert f"| {' | '.join([name, *row])} |" in unescape(re.sub(r"\\(.)", r"\1", markdown))
    assert phantoms.artifact.digest[:16] in html


def test_drops_duplicates_views_and_history_are_counted(tmp_path: Path) -> None:
    studies = [study(n, prior_study_id=f"s{n - 1:04d}" if n % 2 else None) for n in range(40)]
    studies[7] = studies[7].model_copy(update={"encounter": None, "impression": "Short."})
    cohort = made(
        tmp_path / "store",
        studies,
        dropped={"no frontal image": 3, "withdrawn": 1},
        duplicates={"image test": 2},
    )
    read, _, _ = card(cohort, tmp_path / "card")
    assert read.tables["Records that did not become studies"]["withdrawn"] == ["1"]
    assert read.tables["Near-duplicates across splits"]["image test"] == ["2"]
    assert read.tables["Images by view"]["frontal, PA"] == ["30", "10", "40"]
    assert read.tables["Images by view"]["lateral"] == ["30", "10", "40"]
    history = read.tables["Studies by their place in the patient's history"]
    assert history["not known"] == ["1", "0"]
    assert history["with an earlier study of the patient"] == ["15", "5"]
    assert read.tables["Sections"]["findings and impression"] == ["1 (3.3%)", "0 (0.0%)"]
    assert read.tables["Words"]["indication"] == ["0", "", "", ""]


def test_percentiles_are_by_nearest_rank(tmp_path: Path) -> None:
    studies = [study(n, findings="word " * (n + 1)) for n in range(100)]
    read, _, _ = card(made(tmp_path / "store", studies), tmp_path / "card")
    assert read.tables["Words"]["findings"] == ["100", "50", "95", "100"]


# An institution's patients


def test_small_counts_of_an_institution_are_hidden_and_do_not_follow_from_the_total(tmp_path: Path) -> None:
    ages = [45] * 60 + [70] * 30 + [95] * 3
    races = ["Asian"] * 50 + ["White"] * 36 + [f"Doe family {n}" for n in range(7)]
    sexes = ["F"] * 50 + ["M"] * 43
    studies = [
        study(n, age=age, race=race, sex=sex)
        for n, (age, race, sex) in enumerate(zip(ages, races, sexes, strict=True))
    ]
    read, html, markdown = card(made(tmp_path / "store", studies), tmp_path / "card")
    dash = "\N{EN DASH}"
    assert read.tables["Age in years"] == {
        "value": ["studies"],
        f"40{dash}49": ["60"],
        f"70{dash}79": ["withheld"],
        "90 and over": ["<10"],
    }
    assert read.tables["Race"] == {
        "value": ["studies"],
        "Asian": ["50"],
        "White": ["withheld"],
        "other values": ["<10"],
    }
    assert read.tables["Sex"] == {"value": ["studies"], "F": ["50"], "M": ["43"]}
    assert "Doe" not in html + markdown
    assert html.count("<i style") == 4  # no bar shows what is hidden


def test_small_counts_of_a_public_corpus_are_shown(tmp_path: Path) -> None:
    studies = [study(n, corpus="iu_xray", sex="F" if n else "M") for n in range(12)]
    read, _, _ = card(made(tmp_path / "store", studies), tmp_path / "card")
    assert read.tables["Sex"] == {"value": ["studies"], "F": ["11"], "M": ["1"]}


# Images


def films(html: str) -> list[PIL.Image]:
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", html)
    return [PIL.open(io.BytesIO(base64.b64decode(one))) for one in found]


def test_samples_are_spread_over_an_open_corpus(phantoms: Cohort, tmp_path: Path) -> None:
    _, html, _ = card(phantoms, tmp_path)
    assert len(films(html)) == 12
    assert all(film.size == (64, 64) for film in films(html))


@pytest.mark.parametrize(
    ("corpus", "uri"), [("north", None), ("mimic_cxr", "files/p10/a.jpg"), ("phantom", None)]
)
def test_images_of_any_other_corpus_are_shown_only_when_asked_for(
    tmp_path: Path, corpus: str, uri: str | None
) -> None:
    image = Image(view="frontal", uri=uri, data=png())
    cohort = made(tmp_path / "store", [study(n, corpus=corpus, images=(image,)) for n in range(20)])
    _, html, markdown = card(cohort, tmp_path / "card")
    assert films(html) == []
    assert "No sample images" in html
    assert "No sample images" in markdown
    _, html, _ = card(cohort, tmp_path / "card", images=True)
    assert len(films(html)) == 12


# The page itself


def hostile(store: Path) -> Cohort:
    studies = [study(n, corpus="iu_xray", race=HOSTILE if n % 2 else None) for n in range(30)]
    return made(store, studies, dropped={HOSTILE: 2})


def test_hostile_values_are_text_in_the_page_and_in_the_markdown(tmp_path: Path) -> None:
    read, html, markdown = card(hostile(tmp_path / "store"), tmp_path / "card")
    assert read.tables["Race"][shown(HOSTILE)] == ["15"]
    assert not {"script", "iframe", "object", "form", "base"} & set(read.tags)
    assert read.handlers == []
    assert all(link.startswith("data:") for link in read.links)
    assert "<script" not in markdown
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in html + markdown
    assert all(
        len(re.findall(r"(?<!\\)\|", line)) in (0, 3) for line in markdown.splitlines() if "td" in line
    )


def test_no_text_of_a_report_is_in_the_card(phantoms: Cohort, tmp_path: Path) -> None:
    _, html, markdown = card(made(tmp_path / "store", [study(n) for n in range(20)]), tmp_path / "card")
    assert CANARY not in html + markdown
    _, html, markdown = card(phantoms, tmp_path / "phantoms")
    assert not any(str(one.findings) in html + markdown for one in phantoms.studies() if one.findings)
    assert not any(one.study_id in html + markdown for one in phantoms.studies())


def test_the_same_cohort_has_the_same_card_wherever_it_lies(store: str, tmp_path: Path) -> None:
    studies = [study(n, age=50) for n in range(30)]
    here, there = made(tmp_path / "here", studies), made(store, studies)
    assert card(here, tmp_path / "a")[1:] == card(there, tmp_path / "b")[1:]


def test_very_many_values_and_long_ones_are_cut(tmp_path: Path) -> None:
    studies = [
        study(n, corpus="iu_xray", race=f"{n} {'x' * 500}", institution=f"place-{n}") for n in range(60)
    ]
    read, html, _ = card(made(tmp_path / "store", studies), tmp_path / "card")
    assert len(read.tables["Race"]) <= 28
    assert read.tables["Race"]["other values"] == ["35"]
    assert "The first 25 of 60." in html
    assert "x" * 60 not in html


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    cohort = made(tmp_path / "store", [study(n) for n in range(4)])
    for path in (tmp_path / "store" / "shards").iterdir():
        path.unlink()
    with pytest.raises(ArtifactError, match=r"shards/\w{64}\.parquet is missing"):
        write_card(cohort, tmp_path / "card")


def test_a_browser_shows_it_without_an_error_or_a_request(tmp_path: Path) -> None:
    card(hostile(tmp_path / "store"), tmp_path / "card", images=True)
    uri = (tmp_path / "card" / "card.html").as_uri()
    with browser.tab() as tab:
        tab.open(uri)
        assert tab.evaluate("document.querySelectorAll('table').length") == 14
        assert tab.evaluate("document.images.length") == 12
        assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)") is True
        assert tab.complaints == []
        assert [url for url in tab.requested if not url.startswith("data:")] == [uri]
    with browser.tab(browser.PHONE) as tab:
        tab.open(uri)
        assert tab.overflow() == 0
