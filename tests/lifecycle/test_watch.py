"""New data: what a phantom institution delivers against what a cohort has, and the next cohort of both."""

from __future__ import annotations

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.cohort.site_files import ROW, corpus, dicom
from tests.cohort.test_combine import Inline
from tests.lifecycle.arrivals import SECRETS, SITE_KEY, Exam, Site, drawn, png
from tests.lifecycle.stores import made
from unirg import artifact, cli, storage
from unirg.artifact import Artifact, Draft
from unirg.cohort import incoming
from unirg.cohort import stage as staging
from unirg.cohort.combine import Part, combine
from unirg.cohort.corpora import source
from unirg.cohort.grow import grow
from unirg.cohort.incoming import Incoming
from unirg.cohort.ledger import Row, read, told
from unirg.cohort.reader import DROPPED, Cohort
from unirg.cohort.stage import StageConfig, stage
from unirg.cohort.withdrawal import withdraw
from unirg.errors import UserError
from unirg.lifecycle import watch as watching
from unirg.lifecycle.lineage import artifacts
from unirg.lifecycle.watch import WatchConfig, enough, models_that_saw, taken, watch
from unirg.study import Study

EXAMS = drawn(24)
LATER = drawn(10, seed=1)
SPLIT = {"test": 0.3, "validate": 0.2}


@pytest.fixture(autouse=True)
def _site_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIRG_SITE_KEY", SITE_KEY)
    monkeypatch.setattr(staging, "Pool", Inline)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "incoming").mkdir()
    return Site(str(tmp_path / "incoming"))


@pytest.fixture
def where(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def settings(site: Site, **fields: Any) -> StageConfig:
    given = {"size": 64, "shard_studies": 4, "workers": 1, "split": SPLIT, "institution": {"name": "north"}}
    return StageConfig.model_validate(given | {"corpus": "institution", "data": site.place} | fields)


def look(site: Site, cohort: Artifact | None, store: str, after_s: float = 1000, **fields: Any) -> Artifact:
    """Watch as somebody would so long after now."""
    return watch(WatchConfig(stage=settings(site, **fields)), cohort, store, lambda: time.time() + after_s)


def first(site: Site, store: str, exams: list[Exam] = EXAMS) -> Artifact:
    """The cohort of a first delivery."""
    site.deliver("d0", exams)
    return grow(look(site, None, store), store)


def kinds(seen: Artifact) -> dict[str, str]:
    return {name: row.kind for name, row in read(seen).items()}


def count(seen: Artifact, name: str) -> int:
    return int(seen.manifest.counts.get(name, 0))


def studies(cohort: Artifact) -> list[Study]:
    return Cohort.open(cohort).studies()


def splits(cohort: Artifact) -> dict[str, str | None]:
    return {study.patient_id: study.split for study in studies(cohort)}


def together(site: Site, store: str, exams: list[Exam]) -> Artifact:
    """The same studies in one table, staged at once."""
    one = Site(f"{site.place}-together")
    one.deliver("all", exams)
    return stage(settings(one, data=f"{one.place}/all/studies.csv"), store)


def same(cohort: Artifact, other: Artifact) -> None:
    """Equal study by study: texts, splits, encounters, priors and pixels."""
    ours, theirs = Cohort.open(cohort), Cohort.open(other)
    assert ours.studies() == theirs.studies()
    for study in ours.studies():
        assert ours.with_images(study.study_id) == theirs.with_images(study.study_id)


def other_split(cohort: Artifact, of: Exam) -> Exam:
    """An exam of a patient who is in another split than the given one's."""
    known = splits(cohort)
    return next(exam for exam in EXAMS if known[exam.patient_id] != known[of.patient_id])


# What arrives


def test_a_first_delivery_becomes_the_cohort_that_staging_it_makes(site: Site, where: str) -> None:
    site.deliver("d0", EXAMS)
    seen = look(site, None, where)
    assert set(kinds(seen).values()) == {"new"}
    assert (taken(seen), count(seen, "seen"), enough(seen, len(EXAMS))) == (len(EXAMS), len(EXAMS), True)
    assert not enough(seen, len(EXAMS) + 1)
    same(grow(seen, where), together(site, where, EXAMS))


def test_what_arrives_later_joins_and_no_patient_moves(site: Site, where: str) -> None:
    cohort = first(site, where)
    site.deliver("d1", LATER)
    seen = look(site, cohort, where)
    assert (count(seen, "new"), count(seen, "duplicate"), count(seen, "late")) == (len(LATER), len(EXAMS), 0)
    assert set(told(seen).model_dump()) == {"institution", "watermark", "increment", "increment_digest"}
    grown = grow(seen, where)
    assert splits(cohort).items() <= splits(grown).items()
    same(grown, together(site, where, EXAMS + LATER))
    kept = {shard.sha256 for shard in Cohort.open(grown).index.shards}
    assert {shard.sha256 for shard in Cohort.open(cohort).index.shards} <= kept


def test_where_nothing_is_new_nothing_is_staged_and_the_cohort_stays(site: Site, where: str) -> None:
    cohort = first(site, where)
    before = len(artifacts(where, "cohort"))
    seen = look(site, cohort, where)
    assert set(kinds(seen).values()) == {"duplicate"}
    assert not enough(seen)
    assert told(seen).increment == ""
    assert grow(seen, where).uri == cohort.uri
    assert len(artifacts(where, "cohort")) == before


def test_an_empty_place_is_nothing_new_and_a_missing_folder_is_an_error(site: Site, where: str) -> None:
    seen = look(site, None, where)
    assert not enough(seen)
    assert told(seen).watermark == ""
    with pytest.raises(UserError, match="found nothing new, and there is no cohort"):
        grow(seen, where)
    for elsewhere, told_so in (("", "no such directory"), ("/studies.csv", "its table does not exist")):
        with pytest.raises(UserError, match=f"institution north: {told_so}"):
            look(Site(f"{site.place}{elsewhere or '-elsewhere'}"), None, where)


def test_a_cohort_staged_without_a_watch_is_compared_by_its_pixels(site: Site, where: str) -> None:
    site.deliver("d0", EXAMS)
    cohort = stage(settings(site, data=f"{site.place}/d0/studies.csv"), where)
    seen = look(site, cohort, where)
    assert set(kinds(seen).values()) == {"duplicate"}
    assert not enough(seen)
    # What was compared once need not be decoded again, though the cohort still grew from no watch.
    site.deliver("d1", LATER[:1])
    seen = look(site, cohort, where)
    (staged,) = [one for one in artifacts(where, "cohort") if one.uri.endswith(told(seen).increment)]
    assert {study.study_id for study in studies(staged)} == {LATER[0].study_id}


def test_the_same_event_twice_is_one_artifact_and_another_is_another(site: Site, where: str) -> None:
    site.deliver("d0", EXAMS)
    seen = look(site, None, where)
    assert look(site, None, where).uri == seen.uri
    assert look(site, None, where, after_s=5000).uri == seen.uri
    site.deliver("d1", LATER[:1])
    assert look(site, None, where, after_s=0).uri == look(site, None, where, after_s=0).uri
    assert look(site, None, where).uri != seen.uri


# Duplicates, corrections, late studies


def test_a_second_delivery_of_the_same_is_no_news(site: Site, where: str) -> None:
    cohort = first(site, where)
    site.deliver("again", EXAMS)
    for exam in EXAMS[:3]:  # exported anew: other bytes, the same pixels
        site.put(f"again/{exam.mrn}/{exam.accession}.png", png(exam.pixels, level=0))
    seen = look(site, cohort, where)
    assert set(kinds(seen).values()) == {"duplicate"}
    assert not enough(seen)
    assert grow(seen, where).uri == cohort.uri


def test_the_same_content_under_another_number_is_a_copy(site: Site, where: str) -> None:
    cohort = first(site, where)
    site.deliver(
        "d1",
        [
            replace(EXAMS[0], accession="QX77-copy"),
            *(replace(one, accession=f"QX77-{n}") for n, one in enumerate([LATER[0]] * 2)),
        ],
    )
    seen = look(site, cohort, where)
    assert (count(seen, "copy"), count(seen, "new")) == (2, 1)
    grown = grow(seen, where)
    assert len(studies(grown)) == len(EXAMS) + 1
    reasons = [row["reason"] for row in pq.read_table(grown.path(DROPPED)).to_pylist()]
    assert reasons == [watching.COPY] * 2


def test_a_correction_replaces_the_earlier_version_and_its_patient_stays(site: Site, where: str) -> None:
    cohort = first(site, where)
    corrected = [EXAMS[0].reported("Corrected: a small effusion."), *EXAMS[1:]]
    site.deliver("d1", corrected[:1])
    seen = look(site, cohort, where)
    assert kinds(seen)[EXAMS[0].study_id] == "corrected"
    assert (taken(seen), count(seen, "duplicate")) == (1, len(EXAMS) - 1)
    grown = grow(seen, where)
    same(grown, together(site, where, corrected))
    assert splits(grown) == splits(cohort)
    # The older delivery still lies there: it corrects nothing back.
    assert not enough(look(site, grown, where))


def test_a_corrected_table_in_the_same_place_is_a_correction(site: Site, where: str) -> None:
    cohort = first(site, where)
    corrected = [EXAMS[0].reported("Corrected in place."), *EXAMS[1:]]
    site.deliver("d0", corrected)
    seen = look(site, cohort, where)
    assert (count(seen, "corrected"), count(seen, "duplicate")) == (1, len(EXAMS) - 1)
    same(grow(seen, where), together(site, where, corrected))


def test_two_reports_that_were_swapped_are_two_corrections_and_no_copies(site: Site, where: str) -> None:
    cohort = first(site, where)
    known = splits(cohort)
    one = EXAMS[0]
    two = next(e for e in EXAMS if e.mrn != one.mrn and known[e.patient_id] == known[one.patient_id])
    swapped = [
        replace(two, accession=one.accession, mrn=one.mrn),
        replace(one, accession=two.accession, mrn=two.mrn),
    ]
    site.deliver("d1", swapped)
    seen = look(site, cohort, where)
    assert (count(seen, "corrected"), taken(seen)) == (2, 2)
    same(grow(seen, where), together(site, where, [e for e in EXAMS if e not in (one, two)] + swapped))


@pytest.mark.parametrize("before", [True, False])
def test_what_a_correction_gives_back_is_no_copy(site: Site, where: str, before: bool) -> None:
    """A film and report under the wrong number: that one is corrected, and they come under their own."""
    cohort = first(site, where)
    wrong = EXAMS[0]
    numbers = (replace(wrong, accession=f"QX77-own-{number}") for number in range(100))
    own = next(exam for exam in numbers if (exam.study_id < wrong.study_id) == before)
    right = replace(wrong, findings="What was meant.", pixels=LATER[0].pixels)
    site.deliver("d1", [right, own])
    seen = look(site, cohort, where)
    assert (kinds(seen)[wrong.study_id], kinds(seen)[own.study_id]) == ("corrected", "new")
    same(grow(seen, where), together(site, where, [right, own, *EXAMS[1:]]))


def test_a_version_that_cannot_be_used_replaces_nothing(site: Site, where: str) -> None:
    cohort = first(site, where)
    silent = [replace(exam, findings="", impression="") for exam in EXAMS[:2]]
    site.deliver("d0", [silent[0], *EXAMS[1:]])  # in place of the earlier version
    site.deliver("d1", silent[1:])  # beside it
    broken = LATER[0]
    site.deliver("d2", [broken])
    site.put(f"d2/{broken.mrn}/{broken.accession}.png", b"\x89PNG\r\n\x1a\n")
    seen = look(site, cohort, where)
    found = [kinds(seen)[exam.study_id] for exam in (*EXAMS[:2], broken)]
    assert found == ["unusable", "duplicate", "unusable"]
    assert not enough(seen)
    assert grow(seen, where).uri == cohort.uri
    assert kinds(look(site, None, f"{where}-2"))[EXAMS[1].study_id] == "new"


def test_a_late_study_gives_those_behind_it_other_encounters_and_priors(site: Site, where: str) -> None:
    patient = max({e.mrn for e in EXAMS}, key=lambda mrn: sum(e.mrn == mrn for e in EXAMS))
    visits = sorted((e for e in EXAMS if e.mrn == patient), key=lambda e: e.study_date)
    assert len(visits) >= 3
    late = visits[1]
    cohort = first(site, where, [exam for exam in EXAMS if exam != late])
    before = Cohort.open(cohort)[visits[2].study_id]
    site.deliver("d1", [late])
    seen = look(site, cohort, where)
    row = read(seen)[late.study_id]
    assert (row.kind, row.late, count(seen, "late")) == ("new", True, 1)
    grown = grow(seen, where)
    after = Cohort.open(grown)[visits[2].study_id]
    assert (before.encounter, before.prior_study_id) == (2, visits[0].study_id)
    assert (after.encounter, after.prior_study_id) == (3, late.study_id)
    same(grown, together(site, where, EXAMS))


def test_a_visit_without_a_report_stays_an_encounter_when_the_bucket_is_emptied(
    site: Site, where: str
) -> None:
    patient = max({e.mrn for e in EXAMS}, key=lambda mrn: sum(e.mrn == mrn for e in EXAMS))
    visits = sorted((e for e in EXAMS if e.mrn == patient), key=lambda e: e.study_date)
    silent = replace(visits[0], findings="", impression="")
    cohort = first(site, where, [silent, visits[1]])
    assert Cohort.open(cohort)[visits[1].study_id].encounter == 2
    emptied = Site(f"{site.place}-2")
    emptied.deliver("d1", [visits[2]])
    grown = grow(look(emptied, cohort, where), where)
    assert Cohort.open(grown)[visits[2].study_id].encounter == 3
    assert Cohort.open(grown)[visits[2].study_id].prior_study_id == visits[1].study_id
    same(grown, together(site, where, [silent, *visits[1:3]]))


# What would move a patient


def test_a_film_that_another_split_has_is_refused_for_good(site: Site, where: str) -> None:
    cohort = first(site, where)
    other = other_split(cohort, EXAMS[0])
    tied = replace(EXAMS[0], accession="QX77-tied", mrn=other.mrn, findings="Another report of that film.")
    site.deliver("d1", [tied, LATER[0]])
    seen = look(site, cohort, where)
    assert (kinds(seen)[tied.study_id], count(seen, "new")) == ("tied", 1)
    grown = grow(seen, where)
    assert tied.study_id not in {study.study_id for study in studies(grown)}
    assert {"study_id": tied.study_id, "reason": watching.TIED} in pq.read_table(
        grown.path(DROPPED)
    ).to_pylist()
    again = look(site, grown, where)
    assert (kinds(again)[tied.study_id], told(again).increment) == ("tied", "")


def test_a_study_given_to_a_patient_of_another_split_leaves_the_cohort(site: Site, where: str) -> None:
    cohort = first(site, where)
    other = other_split(cohort, EXAMS[0])
    given = replace(EXAMS[0], mrn=other.mrn)
    site.deliver("d1", [given, LATER[0]])
    grown = grow(look(site, cohort, where), where)
    assert given.study_id not in {study.study_id for study in studies(grown)}
    assert splits(grown)[given.patient_id] == splits(cohort)[given.patient_id]
    assert not enough(look(site, grown, where))


def test_other_split_settings_are_refused_by_study(site: Site, where: str) -> None:
    cohort = first(site, where)
    known = splits(cohort)
    late = next(e for e in EXAMS if known[e.patient_id] == "test")
    site.deliver(
        "d1", [replace(late, accession="QX77-next", findings="Another visit.", pixels=LATER[0].pixels)]
    )
    with pytest.raises(UserError, match=r"would be in train, and its patient is in test: set stage\.split"):
        look(site, cohort, where, split={"test": 0, "validate": 0})
    with pytest.raises(UserError, match=r"the cohort has size 64 and stage\.size is 96"):
        look(site, cohort, where, size=96)
    with pytest.raises(UserError, match=r"lies in another store than .*: watch with --store"):
        look(site, cohort, f"{where}-2")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whatever_comes_in_whatever_order_the_cohort_is_that_of_all_together(
    site: Site, where: str, seed: int
) -> None:
    """Deliveries of any size, in any order, with corrections and duplicates, into the same splits."""
    chance = random.Random(seed)
    coming = EXAMS + LATER
    chance.shuffle(coming)
    now: dict[str, Exam] = {}
    cohort: Artifact | None = None
    held: dict[str, str | None] = {}
    for number in range(5):
        arriving = coming[number * 7 : number * 7 + 7]
        arriving += chance.sample(sorted(now.values(), key=lambda e: e.accession), min(len(now), 2))
        fixed = chance.sample(sorted(now.values(), key=lambda e: e.accession), min(len(now), 2))
        arriving = [e for e in arriving if e not in fixed] + [e.reported(f"Version {number}.") for e in fixed]
        now |= {exam.accession: exam for exam in arriving}
        site.deliver(f"d{number}", arriving)
        cohort = grow(look(site, cohort, where), where)
        assert held.items() <= splits(cohort).items()
        held = splits(cohort)
    assert cohort is not None
    assert set(held.values()) == {"train", "validate", "test"}
    same(cohort, together(site, where, list(now.values())))


# Withdrawal


def test_a_withdrawn_study_is_refused_and_the_models_that_saw_it_are_listed(site: Site, where: str) -> None:
    cohort = first(site, where)
    trained = next(s for s in studies(cohort) if s.split == "train")
    model = made(where, "sft", {"cohort": cohort})
    withdraw(where, studies=[f"north/{trained.study_id}"])
    corrected = next(e for e in EXAMS if e.study_id == trained.study_id).reported("Delivered again.")
    site.deliver("d1", [corrected])
    seen = look(site, cohort, where)
    assert kinds(seen)[trained.study_id] == "withdrawn"
    assert (taken(seen), count(seen, "withdrawn_in_cohort")) == (0, 1)
    assert [(one.stage, one.uri, len(one.learned)) for one in models_that_saw(seen, where)] == [
        ("sft", model.uri, 1)
    ]
    grown = grow(seen, where)
    same(grown, together(site, where, EXAMS))
    assert trained.study_id not in {study.study_id for study in studies(grown)}
    assert models_that_saw(look(site, grown, where), where) == models_that_saw(seen, where)


def test_a_withdrawn_patient_who_comes_again_is_refused(site: Site, where: str) -> None:
    cohort = first(site, where)
    withdraw(where, patients=[f"north/{LATER[0].patient_id}"])
    site.deliver("d1", LATER)
    seen = look(site, cohort, where)
    theirs = {exam.study_id for exam in LATER if exam.mrn == LATER[0].mrn}
    assert {name for name, kind in kinds(seen).items() if kind == "withdrawn"} == theirs
    assert not theirs & {study.study_id for study in studies(grow(seen, where))}
    assert models_that_saw(seen, where) == []


def test_who_withdraws_between_the_watch_and_the_growth_is_left_out(site: Site, where: str) -> None:
    site.deliver("d0", EXAMS)
    seen = look(site, None, where)
    withdraw(where, studies=[f"north/{EXAMS[0].study_id}"])
    assert EXAMS[0].study_id not in {study.study_id for study in studies(grow(seen, where))}


# What has not settled


def test_an_object_that_is_being_written_is_left_for_next_time(site: Site, where: str) -> None:
    cohort = first(site, where)
    site.deliver("d1", LATER, without=[LATER[1].accession])
    for exam in LATER:
        if exam is not LATER[1]:
            site.age(f"d1/{exam.mrn}/{exam.accession}.png", 1000)
    site.age("d1/studies.csv", 1000)
    site.put(f"d1/{LATER[0].mrn}/{LATER[0].accession}.png", png(LATER[0].pixels)[:200])  # half of it
    for folder, _, names in os.walk(f"{site.place}/d0"):
        for name in names:
            os.utime(f"{folder}/{name}", (0, 0))
    seen = look(site, cohort, where, after_s=0)
    assert (count(seen, "new"), count(seen, "waiting")) == (len(LATER) - 2, 2)
    assert not {LATER[0].study_id, LATER[1].study_id} & kinds(seen).keys()
    grown = grow(seen, where)
    site.deliver("d1", LATER)
    rest = look(site, grown, where)
    assert (count(rest, "new"), count(rest, "waiting")) == (2, 0)
    same(grow(rest, where), together(site, where, EXAMS + LATER))


def test_a_report_waits_for_its_dicom_files(site: Site, where: str) -> None:
    cohort = first(site, where)
    corpus(Path(site.place) / "d1", ROW)
    seen = look(site, cohort, where)
    assert (count(seen, "new"), count(seen, "waiting")) == (0, 1)
    dicom(Path(site.place) / "d1" / "QUACKENBUSH" / "1.dcm")
    seen = look(site, cohort, where)
    assert (count(seen, "new"), count(seen, "waiting")) == (1, 0)
    assert len(studies(grow(seen, where))) == len(EXAMS) + 1


def test_a_table_that_is_being_written_is_not_read(site: Site, where: str) -> None:
    cohort = first(site, where)
    site.put("d1/studies.csv", b'mrn,accession,findings,images\n1,2,"The heart')
    seen = look(site, cohort, where, after_s=0)
    assert (taken(seen), count(seen, "tables_waiting")) == (0, 2)
    with pytest.raises(
        UserError, match=r"north: its table: row 1 is not valid CSV .*\(table 2 of 2 that have"
    ):
        look(site, cohort, where)


def test_what_changes_between_two_listings_is_left_for_next_time(
    site: Site, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.deliver("d0", EXAMS)
    growing = f"d0/{EXAMS[0].mrn}/{EXAMS[0].accession}.png"
    listing, calls = source.listing, []

    def listed(*arguments: Any, **options: Any) -> list[source.SourceFile]:
        calls.append(1)
        site.put(growing, png(EXAMS[0].pixels) + b"\0" * len(calls))  # its age says that it has settled
        return listing(*arguments, **options)

    monkeypatch.setattr(source, "listing", listed)
    seen = look(site, None, where)
    assert (count(seen, "new"), count(seen, "waiting")) == (len(EXAMS) - 1, 1)
    assert EXAMS[0].study_id not in kinds(seen)


def test_what_changes_while_it_is_staged_is_not_taken_for_what_was_listed(
    site: Site, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.deliver("d0", EXAMS)
    staged = watching.stage

    def disturbed(*arguments: Any) -> Artifact:
        site.put(f"d0/{EXAMS[0].mrn}/{EXAMS[0].accession}.png", png(LATER[0].pixels))
        return staged(*arguments)

    monkeypatch.setattr(watching, "stage", disturbed)
    seen = look(site, None, where)
    assert (count(seen, "new"), count(seen, "waiting")) == (len(EXAMS) - 1, 1)
    assert EXAMS[0].study_id not in kinds(seen)


def test_a_place_that_never_rests_is_told(site: Site, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    site.deliver("d0", EXAMS[:8])
    listing, calls = source.listing, list[int]()

    def listed(*arguments: Any, **options: Any) -> list[source.SourceFile]:
        exam = EXAMS[len(calls) // 2 % 8]
        calls.append(1)
        site.put(f"d0/{exam.mrn}/{exam.accession}.png", b"\0" * len(calls))
        return listing(*arguments, **options)

    monkeypatch.setattr(source, "listing", listed)
    with pytest.raises(UserError, match="changed 5 times while it was read: raise settle_seconds"):
        look(site, None, where)


# Races, kills, stores


def test_two_watchers_at_once_make_one_artifact_and_one_increment(site: Site, where: str) -> None:
    cohort = first(site, where)
    before = {one.uri for one in artifacts(where, "cohort")}
    site.deliver("d1", LATER)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: look(site, cohort, where), range(2))
    assert one.uri == two.uri
    assert len({made.uri for made in artifacts(where, "cohort")} - before) == 1
    assert len(artifacts(where, "watch")) == 2


@pytest.mark.parametrize("at", ["cohort", "watch"])
def test_killed_before_a_commit_a_rerun_makes_what_an_undisturbed_one_makes(
    site: Site, where: str, tmp_path: Path, at: str
) -> None:
    site.deliver("d0", EXAMS)
    undisturbed = look(site, None, str(tmp_path / "undisturbed"))
    if not (child := os.fork()):
        commit = Draft.commit

        def killed(draft: Draft, *arguments: Any) -> Artifact:
            if draft.stage == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return commit(draft, *arguments)

        Draft.commit = killed  # type: ignore[method-assign,assignment]
        look(site, None, where)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert artifacts(where, "watch") == []
    again = look(site, None, where)
    assert again.digest == undisturbed.digest
    assert len(artifacts(where, "cohort")) == 1


def test_a_cycle_from_bucket_to_bucket(store: str) -> None:
    site = Site(f"{store.rpartition('/')[0]}/incoming")
    cohort = first(site, store, EXAMS[:8])
    site.deliver("d1", [EXAMS[0].reported("Corrected."), *EXAMS[8:12]])
    seen = look(site, cohort, store)
    assert (count(seen, "corrected"), count(seen, "new"), count(seen, "duplicate")) == (1, 4, 7)
    grown = grow(seen, store)
    assert len(studies(grown)) == 12
    assert Cohort.open(grown)[EXAMS[0].study_id].findings == "Corrected."
    assert look(site, cohort, store).uri == seen.uri
    assert not enough(look(site, grown, store))


def test_what_an_institution_delivers_joins_a_cohort_of_several_corpora(site: Site, where: str) -> None:
    phantoms = stage(StageConfig(studies=6, size=64, workers=1), where)
    both = combine([Part(first(site, where)), Part(phantoms)], where)
    site.deliver("d1", LATER)
    seen = look(site, both, where)
    assert (count(seen, "new"), count(seen, "duplicate"), told(seen).institution) == (
        len(LATER),
        len(EXAMS),
        "north",
    )
    grown = grow(seen, where)
    opened = Cohort.open(grown)
    assert opened.index.corpus == "north+phantom"
    assert len(opened.studies()) == len(EXAMS) + len(LATER) + 6
    assert opened.truth() is not None
    assert not enough(look(site, grown, where))


def test_nothing_that_names_a_patient_is_kept_or_told(
    site: Site,
    where: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    cohort = first(site, where)
    site.deliver("d1", LATER, without=[LATER[1].accession])
    seen = look(site, cohort, where)
    grown = grow(seen, where)
    here = incoming.look(settings(site), 0)
    assert len(here.found) > len(EXAMS)
    objects = repr([here, *here.found.values(), Incoming(here, here.found)])
    shown = objects + "".join(capfd.readouterr()) + caplog.text + repr(seen) + repr(list(read(seen).values()))
    kept = [
        path for root in (where, str(tmp_path / "cache")) for path in Path(root).rglob("*") if path.is_file()
    ]
    assert len(studies(grown)) > len(EXAMS)
    for secret in SECRETS:
        assert secret not in shown
        for path in kept:
            assert secret not in str(path)
            assert secret.encode() not in path.read_bytes()
        assert secret not in repr(pq.read_table(seen.path("ledger.parquet")).to_pylist())


# Command line


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    assert left.value.code == 0


def test_the_command_line_ends_green_whether_or_not_there_is_enough(
    site: Site, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site.deliver("d0", EXAMS)
    given = [f"stage.data={site.place}", "stage.institution.name=north", "stage.size=64", "settle_seconds=0"]
    given += ["stage.workers=1", "--store", where]
    run("watch", *given)
    out, shown = capsys.readouterr()
    assert f"new {len(EXAMS)}" in shown
    run("grow", out.strip(), "--store", where)
    cohort = capsys.readouterr().out.strip()
    made(where, "sft", {"cohort": artifact.open_artifact(cohort)})
    trained = next(s for s in studies(artifact.open_artifact(cohort)) if s.split == "train")
    withdraw(where, studies=[f"north/{trained.study_id}"])
    run("watch", *given, "minimum=3", "--cohort", cohort)
    out, shown = capsys.readouterr()
    assert "0 new or corrected, 3 are needed: train nothing" in shown
    assert "watch: sft learned from 1 withdrawn studies" in shown
    assert storage.is_local(out.strip())
    assert {row.kind for row in read(artifact.open_artifact(out.strip())).values()} == {
        "duplicate",
        "withdrawn",
    }
    assert Row.model_fields.keys() == set(
        pq.read_schema(artifact.open_artifact(out.strip()).path("ledger.parquet")).names
    )
