"""Staging: the same cohort however it is made, and every record accounted for."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as PIL

from tests.canary import CANARY, everything_shown
from tests.cohort.films import Films
from tests.conftest import S3
from unirg import storage
from unirg.artifact import Artifact, ArtifactError
from unirg.cohort import stage as staging
from unirg.cohort.intake import Intake
from unirg.cohort.reader import DROPPED, DUPLICATES, Cohort
from unirg.cohort.shards import ShardWriter
from unirg.cohort.splits import SplitConfig
from unirg.cohort.stage import StageConfig, stage
from unirg.cohort.withdrawal import withdraw
from unirg.errors import UserError
from unirg.telemetry import InternalError

ROOT = Path(__file__).parents[2]
FLAWED = Films(
    count=24,
    unreadable=frozenset({2, 3}),
    mute=frozenset({4}),
    lateral=frozenset({6, 7, 8}),
    dropped=frozenset({10}),
    twice=frozenset({12}),
)
REASONS = {
    "unreadable image": 2,
    "neither findings nor impression": 1,
    "no frontal image": 3,
    "unreadable report": 1,
    "duplicate study id": 1,
}
Staged = Callable[..., Artifact]


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Staged:
    """Stage a corpus of the test's own."""

    def run(corpus: Films, store: str | None = None, **fields: object) -> Artifact:
        monkeypatch.setattr(staging, "open_corpus", lambda config: corpus)
        given = {"size": 64, "shard_studies": 4, "workers": 1} | fields
        return stage(StageConfig.model_validate(given), store or str(tmp_path / "store"))

    return run


def shards_in(store: Path) -> dict[str, int]:
    """Shards by name, with the file that each is: one written again would be another."""
    return {path.name: path.stat().st_ino for path in (store / "shards").glob("*.parquet")}


# What is kept


def test_every_record_is_staged_or_counted_by_its_reason(staged: Staged) -> None:
    made = staged(FLAWED, hold_out=("island",))
    cohort = Cohort.open(made)
    assert cohort.index.dropped == REASONS
    assert {n: c for n, c in made.manifest.counts.items() if n.startswith("dropped.")} == {
        f"dropped.{reason}": number for reason, number in REASONS.items()
    }
    studies = cohort.studies()
    assert len(studies) + sum(REASONS.values()) == 24 + 1
    assert [s.study_id for s in studies] == sorted(s.study_id for s in studies)
    by_split = Counter(s.split for s in studies)
    assert {f"studies.{split}": n for split, n in by_split.items()} == {
        n: c for n, c in made.manifest.counts.items() if n.startswith("studies.")
    }
    assert {s.institution for s in cohort.studies("zero_shot")} == {"island"}


def test_a_study_is_read_back_with_its_text_its_image_and_its_prior(staged: Staged) -> None:
    cohort = Cohort.open(staged(FLAWED))
    study = cohort["s015"]
    assert study.findings == f"Findings of 15. {CANARY}"
    assert [image.view for image in study.images] == ["lateral", "frontal"]
    assert all(image.data is None for image in study.images)
    shown = cohort.with_images("s015")
    assert shown.model_copy(update={"images": study.images}) == study
    lateral, frontal = shown.images
    assert lateral.data is None
    assert frontal.data is not None
    pixels = PIL.open(io.BytesIO(frontal.data))
    assert (pixels.format, pixels.mode, pixels.size) == ("PNG", "L", (64, 64))
    assert np.all(np.asarray(pixels) == 15)
    prior = cohort.prior(study)
    assert prior is not None
    assert (prior.study_id, study.encounter) == ("s014", 2)
    assert prior.key_image is not None
    assert prior.key_image.data


def test_a_prior_that_was_dropped_is_no_prior(staged: Staged) -> None:
    cohort = Cohort.open(staged(Films(count=4, unreadable=frozenset({2}))))
    assert cohort["s003"].prior_study_id == "s002"
    assert cohort.prior(cohort["s003"]) is None


def test_an_institutions_paths_stay_with_it_and_a_public_corpus_keeps_its_own(staged: Staged) -> None:
    private, public = (Cohort.open(staged(Films(count=2, public=public))) for public in (False, True))
    assert {image.uri for s in private.studies() for image in s.images} == {None}
    assert all(image.uri for s in public.studies() for image in s.images)


def test_what_lies_in_the_store_shows_no_path_outside_the_shards(staged: Staged, tmp_path: Path) -> None:
    made = staged(Films(count=2))
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file() and path.suffix != ".parquet":
            assert CANARY not in path.read_text(), path
    shards = b"".join(path.read_bytes() for path in (tmp_path / "store" / "shards").iterdir())
    assert f"/{CANARY}".encode() not in shards
    assert CANARY not in made.uri


def test_a_study_that_is_not_there_is_named(staged: Staged) -> None:
    cohort = Cohort.open(staged(Films(count=2)))
    with pytest.raises(UserError, match=r"cohort .* has no study s999"):
        cohort.with_images("s999")


def test_many_threads_read_one_cohort(staged: Staged) -> None:
    cohort = Cohort.open(staged(Films(count=40), shard_studies=20))
    ids = [study.study_id for study in cohort.studies()] * 5
    with ThreadPoolExecutor(8) as pool:
        shown = list(pool.map(cohort.with_images, ids))
    assert [study.study_id for study in shown] == ids
    for study in shown:
        image = study.key_image
        assert image is not None
        assert image.data is not None
        assert np.all(np.asarray(PIL.open(io.BytesIO(image.data))) == int(study.study_id[1:]))


# What stops it


@pytest.mark.parametrize(
    ("corpus", "reasons"),
    [
        (Films(count=0), r"\(\)"),
        (Films(count=3, unreadable=frozenset(range(3))), r"\(3 unreadable image\)"),
        (
            Films(count=3, mute=frozenset({0, 1}), dropped=frozenset({2})),
            r"\(2 neither findings nor impression, 1 unreadable report\)",
        ),
    ],
)
def test_a_cohort_of_nothing_is_refused_with_the_reasons(
    staged: Staged, corpus: Films, reasons: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"films: no study is left to stage {reasons}"):
        staged(corpus)
    assert list((tmp_path / "store").glob("cohort/*")) == []


def test_a_failure_in_a_worker_says_where_but_shows_no_content(staged: Staged) -> None:
    with pytest.raises(InternalError, match="ValueError at") as shown:
        staged(Films(count=4, failing=frozenset({1})))
    assert CANARY not in everything_shown(shown.value)


def test_holding_out_nobody_is_refused(staged: Staged) -> None:
    with pytest.raises(UserError, match="hold_out names summit"):
        staged(Films(count=2), hold_out=("summit",))


def test_a_corpus_without_its_data_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="iu_xray needs data=URI"):
        stage(StageConfig(corpus="iu_xray"), str(tmp_path))


# The same cohort however it is made


def test_neither_processes_nor_the_order_of_records_change_the_cohort(staged: Staged, tmp_path: Path) -> None:
    one = staged(FLAWED, str(tmp_path / "one"), workers=1)
    two = staged(FLAWED, str(tmp_path / "two"), workers=2)
    assert one.digest == two.digest
    assert set(shards_in(tmp_path / "one")) == set(shards_in(tmp_path / "two"))


def test_a_second_cohort_shares_the_shards_that_are_equal(staged: Staged, tmp_path: Path) -> None:
    none_held: dict[str, object] = {"split": {"test": 0.0, "validate": 0.0}}
    first = staged(Films(count=8), **none_held)
    before = shards_in(tmp_path / "store")
    second = staged(Films(count=10), **none_held)
    after = shards_in(tmp_path / "store")
    assert first.digest != second.digest
    assert (len(before), len(after)) == (2, 3)
    assert {name: after[name] for name in before} == before
    assert len(Cohort.open(first).studies()) == 8
    assert len(Cohort.open(second).studies()) == 10


def test_a_shards_bytes_depend_on_its_studies_alone(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "intake.sqlite")
    intake.take(FLAWED, SplitConfig())
    groups = list(enumerate(intake.groups(4)))
    assert [len(each) for _, each in groups] == intake.sizes(4)
    assert all(len({s.split for s in each}) == 1 and len(each) <= 4 for _, each in groups)
    made = [
        [
            ShardWriter(FLAWED, 64, "stretch", str(tmp_path / name))(job, {}, lambda item: None)
            for job in order
        ]
        for name, order in (("a", groups), ("b", groups[::-1]))
    ]
    assert made[0] == made[1][::-1]
    assert sum(len(written.unreadable) for written in made[0]) == 2


@pytest.mark.parametrize("server", ["moto_s3", pytest.param("s3_environment", marks=pytest.mark.s3)])
def test_the_same_cohort_comes_of_an_object_store(
    server: str, staged: Staged, request: pytest.FixtureRequest, tmp_path: Path, cache: Path
) -> None:
    s3: S3 = request.getfixturevalue(server)
    bucket = s3.bucket()
    local, remote = staged(FLAWED), staged(FLAWED, f"s3://{bucket}/store")
    assert remote.digest == local.digest
    cohort = Cohort.open(remote.uri)
    assert cohort.studies() == Cohort.open(local).studies()
    assert cohort.with_images("s015") == Cohort.open(local).with_images("s015")
    assert list((cache / "shards").iterdir())
    keys = [entry["Key"] for entry in s3.client().list_objects_v2(Bucket=bucket)["Contents"]]
    known = r"store/(shards/\w{64}\.parquet|cohort/\w{16}/[\w./]+|audit/(entries|keys)/[\w./]+)"
    assert all(re.fullmatch(known, key) for key in keys), keys


def test_the_datasets_library_streams_the_shards_from_where_they_lie(staged: Staged, store: str) -> None:
    from datasets import load_dataset

    cohort = Cohort.open(staged(FLAWED, store))
    where = [storage.join(store, shard.name) for shard in cohort.index.shards]
    rows = list(load_dataset("parquet", data_files=where, split="train", streaming=True))
    assert sorted(row["study_id"] for row in rows) == [study.study_id for study in cohort.studies()]
    for row in rows:
        study = cohort.with_images(row["study_id"])
        assert row["findings"] == study.findings
        assert [image["data"] for image in row["images"]] == [image.data for image in study.images]


# Parts, withdrawals, and what is written down


def test_parts_made_apart_become_the_cohort_of_a_single_run(
    staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = staged(FLAWED, str(tmp_path / "whole"))
    config = StageConfig.model_validate({"size": 64, "shard_studies": 4, "workers": 1})
    monkeypatch.setattr(staging, "open_corpus", lambda config: FLAWED)
    store = str(tmp_path / "parts")
    written = [staging.stage_part(config, store, part, 3) for part in (2, 0, 1)]
    assert sum(written) == len(list((tmp_path / "parts" / ".work").glob("cohort-*/notes/*.json"))) > 3
    before = shards_in(tmp_path / "parts")
    assert stage(config, store).digest == whole.digest
    assert shards_in(tmp_path / "parts") == before
    assert list((tmp_path / "parts" / ".work").glob("*/")) == []
    with pytest.raises(UserError, match="part 3 of 3"):
        staging.stage_part(config, store, 3, 3)


def test_a_note_whose_shard_someone_removed_is_not_believed(
    staged: Staged, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = staged(FLAWED, str(tmp_path / "whole"))
    monkeypatch.setattr(staging, "_assemble", lambda *given: 1 / 0)
    with pytest.raises(InternalError):
        staged(FLAWED)
    monkeypatch.undo()
    shards = shards_in(tmp_path / "store")
    removed = min(shards)
    (tmp_path / "store" / "shards" / removed).unlink()
    assert staged(FLAWED).digest == whole.digest
    after = shards_in(tmp_path / "store")
    assert {name for name in shards if after[name] != shards[name]} <= {removed}
    assert set(after) == set(shards)


def test_every_record_that_became_no_study_is_listed_with_its_reason(staged: Staged) -> None:
    made = staged(FLAWED)
    listed = pq.read_table(made.path(DROPPED)).to_pylist()
    assert {row["study_id"]: row["reason"] for row in listed} == {
        "s002": "unreadable image: corrupt or truncated",
        "s003": "unreadable image: corrupt or truncated",
        "s004": "neither findings nor impression",
        **dict.fromkeys(("s006", "s007", "s008"), "no frontal image"),
        "s010": "unreadable report",
        "s012": "duplicate study id",
    }
    assert Cohort.open(made).index.account == {"relabelled": 1}


def test_a_withdrawn_study_is_in_no_later_cohort_and_no_later_ones_prior(
    staged: Staged, tmp_path: Path
) -> None:
    before = staged(Films(count=8, name="phantom"))
    withdraw(str(tmp_path / "store"), ["phantom/s002"], ["phantom/p003", "iu_xray/p000"])
    after = staged(Films(count=8, name="phantom"))
    assert before.uri != after.uri
    cohort = Cohort.open(after)
    assert [study.study_id for study in cohort.studies()] == ["s000", "s001", "s003", "s004", "s005"]
    assert cohort.index.dropped == {"withdrawn": 3}
    assert cohort["s003"].prior_study_id is None
    withdraw(str(tmp_path / "store"), ["iu_xray/s001"])
    assert staged(Films(count=8, name="phantom")).uri == after.uri


def test_what_is_withdrawn_while_it_is_staged_is_in_no_cohort(
    staged: Staged, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    corpus, store = Films(count=6, name="phantom"), str(tmp_path / "store")
    finished = staging._assemble

    def meanwhile(*given: Any) -> Any:
        withdraw(store, ["phantom/s002"])
        return finished(*given)

    with monkeypatch.context() as once:
        once.setattr(staging, "_assemble", meanwhile)
        with pytest.raises(UserError, match="withdrawn while these were staged: run the same command again"):
            staged(corpus, store)
    assert "s002" not in {study.study_id for study in Cohort.open(staged(corpus, store)).studies()}


def test_a_decoder_that_crashes_or_hangs_costs_its_study_alone(staged: Staged) -> None:
    made = staged(Films(count=8, crashing=frozenset({1}), hanging=frozenset({6})), seconds=1.5)
    assert {row["study_id"]: row["reason"] for row in pq.read_table(made.path(DROPPED)).to_pylist()} == {
        "s001": "unreadable image: decoder crashed",
        "s006": "unreadable image: decoder took too long",
    }
    assert len(Cohort.open(made).studies()) == 6


def test_equal_images_across_splits_are_reported_and_kept(staged: Staged) -> None:
    made = staged(Films(count=40, alike=frozenset(range(40))), split={"test": 0.5, "validate": 0.0})
    cohort = Cohort.open(made)
    tested = {study.study_id for study in cohort.studies("test")}
    rows = pq.read_table(made.path(DUPLICATES)).to_pylist()
    assert {row["study_id"] for row in rows if row["kind"] == "image"} == tested
    assert {row["other_split"] for row in rows} == {"train"}
    assert cohort.index.duplicates["image test"] == len(tested)
    assert made.manifest.counts["duplicates.image test"] == len(tested)


def test_a_cohort_comes_with_its_card(staged: Staged) -> None:
    made = staged(FLAWED)
    card = (made.directory / "logs" / "card.html").read_text()
    assert "no frontal image" in card
    assert CANARY not in card


def test_a_refused_run_leaves_no_path_of_an_institution_behind(staged: Staged, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study is left"):
        staged(Films(count=3, unreadable=frozenset(range(3))))
    left = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not [path.name for path in left if CANARY.encode() in path.read_bytes()]


# Damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "truncated or altered"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9] + bytes(9)), "is altered"),
    ],
)
def test_a_damaged_shard_is_named_when_it_is_read(
    staged: Staged, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    made = staged(Films(count=2))
    (shard,) = (tmp_path / "store" / "shards").iterdir()
    damage(shard)
    with pytest.raises(ArtifactError, match=f"{shard.name}.*{said}.*run its stage again"):
        Cohort.open(made).studies()
