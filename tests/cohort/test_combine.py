"""Combined cohorts: every study of the parts, and none that a part's promise forbids."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.canary import CANARY
from tests.cohort.films import Films
from tests.conftest import S3
from tests.lifecycle.stores import age, made, shards
from unirg import cli
from unirg.artifact import Artifact, ArtifactError, open_artifact
from unirg.cohort import combine as combining
from unirg.cohort import stage as staging
from unirg.cohort.combine import Part, combine, parts
from unirg.cohort.reader import DROPPED, DUPLICATES, Cohort
from unirg.cohort.shards import ShardWriter, Written
from unirg.cohort.stage import StageConfig, stage
from unirg.cohort.withdrawal import Withdrawn, withdraw
from unirg.errors import UserError
from unirg.lifecycle.lineage import lineage
from unirg.lifecycle.retention import gc
from unirg.study import Study


@dataclass
class Named(Films):
    """Films whose studies and patients have a prefix of their own."""

    prefix: str = "s"
    patients: str = ""
    """Prefix of the patients; empty: the studies'."""

    def study(self, number: int) -> Study:
        study = super().study(number)
        own = {
            "study_id": f"{self.prefix}{number:03d}",
            "patient_id": f"{self.patients or self.prefix}{number // 2:03d}",
        }
        return study.model_copy(update=own)

    def truth(self) -> pa.Table | None:
        names = [f"{self.prefix}{number:03d}" for number in range(self.count)]
        return (
            pa.table({"study_id": names, "effusion": [True] * self.count}) if self.name == "phantom" else None
        )


ALIKE = frozenset(range(16))
MIMIC = Named(16, name="mimic_cxr", prefix="m", dropped=frozenset({3}), alike=ALIKE)
IU = Named(12, name="iu_xray", prefix="c", mute=frozenset({4}))
CORPORA: dict[str, tuple[Films, dict[str, Any]]] = {
    "mimic": (MIMIC, {}),
    "iu": (IU, {}),
    "iu held out": (IU, {"hold_out": ("iu_xray",)}),
    "phantom": (Named(8, name="phantom", prefix="f"), {}),
    "wide": (Named(4, name="chexpert_plus", prefix="w"), {"size": 96}),
    "padded": (Named(4, name="chexpert_plus", prefix="w"), {"resize": "pad"}),
    "seed": (Named(16, name="mimic_cxr", prefix="n", patients="m"), {"split": {"test": 0.5, "seed": 1}}),
    "rexrank": (Named(16, name="rexrank_mimic_cxr", prefix="p1_m"), {"split": {"test": 0.9, "validate": 0}}),
    "rexrank held out": (Named(2, name="rexrank_iu_xray", prefix="r"), {"hold_out": ("rexrank_iu_xray",)}),
    "namesake": (Named(2, name="rexgradient", prefix="m"), {}),
    "without island": (Named(12, name="chexpert_plus", prefix="w"), {"hold_out": ("island",)}),
}


class Inline:
    """`workers.Pool` without processes: what crashes a decoder is not tested here."""

    def __init__(self, workers: int, writer: ShardWriter, seconds: float) -> None:
        self.writer = writer

    def run(
        self, jobs: Iterable[tuple[int, list[Study]]]
    ) -> Iterator[tuple[tuple[int, list[Study]], Written]]:
        for job in jobs:
            yield job, self.writer(job, {}, lambda place: None)


def staged(store: str, names: Iterable[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Artifact]:
    """Corpora of `CORPORA`, staged."""
    found = {}
    for name in names:
        corpus, fields = CORPORA[name]
        given = {"size": 64, "shard_studies": 4, "workers": 1, "split": {"test": 0.3, "validate": 0.2}}
        with monkeypatch.context() as patched:
            patched.setattr(staging, "Pool", Inline)
            patched.setattr(staging, "open_corpus", lambda config, corpus=corpus: corpus)
            found[name] = stage(StageConfig.model_validate(given | fields), store)
    return found


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A store with all of them, and their folders' names."""
    where = tmp_path_factory.mktemp("combine") / "store"
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = staged(str(where), CORPORA, monkeypatch)
    return where, {name: made.uri.rpartition("/")[2] for name, made in found.items()}


@pytest.fixture
def cohorts(original: tuple[Path, dict[str, str]], tmp_path: Path) -> dict[str, Artifact]:
    """The same in the test's own store."""
    where, keys = original
    shutil.copytree(where, tmp_path / "store")
    return {name: open_artifact(f"{tmp_path}/store/cohort/{key}") for name, key in keys.items()}


@pytest.fixture
def where(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def names_of(made: Artifact, split: str | None = None) -> set[str]:
    return {study.study_id for study in Cohort.open(made).studies(split)}


def test_a_combined_cohort_lists_the_shards_of_its_parts_and_writes_none(
    cohorts: dict[str, Artifact], where: str
) -> None:
    before = shards(where)
    ours = [Part(cohorts["mimic"]), Part(cohorts["iu"])]
    both = combine(ours, where)
    assert shards(where) == before
    opened, mimic, iu = Cohort.open(both), Cohort.open(cohorts["mimic"]), Cohort.open(cohorts["iu"])
    assert opened.studies() == [*iu.studies(), *mimic.studies()]
    assert opened.with_images("m006") == mimic.with_images("m006")
    prior = opened.prior(opened["c001"])
    assert prior is not None
    assert prior.study_id == "c000"
    assert opened.index.corpus == "iu_xray+mimic_cxr"
    assert opened.index.dropped == {"neither findings nor impression": 1, "unreadable report": 1}
    assert opened.index.account == {"relabelled": 2}
    assert opened.index.duplicates == Counter(mimic.index.duplicates) + Counter(iu.index.duplicates)
    assert both.manifest.counts == Counter(mimic.artifact.manifest.counts) + Counter(
        iu.artifact.manifest.counts
    )
    assert {row["study_id"] for row in pq.read_table(both.path(DROPPED)).to_pylist()} == {"s003", "c004"}
    assert sorted(one.digest for one in both.manifest.inputs.values()) == sorted(
        one.cohort.digest for one in ours
    )
    assert both.manifest.config["size"] == 64
    card = both.path("logs/card.html").read_text()
    assert "Cohort card: iu_xray+mimic_cxr" in card
    assert "credentialed access" in card
    assert CANARY not in card
    assert combine(ours[::-1], where).uri == both.uri


def test_of_a_part_only_the_splits_asked_for_are_taken(cohorts: dict[str, Artifact], where: str) -> None:
    (mimic, iu) = (Cohort.open(cohorts[name]) for name in ("mimic", "iu"))
    made = combine([Part(cohorts["mimic"], ("train", "validate")), Part(cohorts["iu"], ("test",))], where)
    assert names_of(made, "train") == names_of(cohorts["mimic"], "train")
    assert names_of(made, "test") == names_of(cohorts["iu"], "test")
    assert len(names_of(made)) == sum(
        len(c.studies(s)) for c, s in ((mimic, "train"), (mimic, "validate"), (iu, "test"))
    )
    pairs = pq.read_table(made.path(DUPLICATES)).to_pylist()
    assert pairs
    assert {(pair["split"], pair["other_split"]) for pair in pairs} == {("validate", "train")}
    known = pq.read_table(cohorts["mimic"].path(DUPLICATES)).to_pylist()
    assert len(pairs) < len(known)
    assert Cohort.open(made).index.duplicates == Counter(f"{p['kind']} {p['split']}" for p in pairs)
    assert made.uri != combine([Part(cohorts["mimic"]), Part(cohorts["iu"], ("test",))], where).uri


def test_a_corpus_held_out_is_the_zero_shot_set_of_the_others(
    cohorts: dict[str, Artifact], where: str
) -> None:
    made = combine([Part(cohorts["mimic"]), Part(cohorts["iu held out"])], where)
    assert names_of(made, "zero_shot") == names_of(cohorts["iu"])
    assert {study.corpus for study in Cohort.open(made).studies("train")} == {"mimic_cxr"}
    assert Cohort.open(made).index.hold_out == ("iu_xray",)


def test_ground_truth_is_of_the_studies_that_are_taken(cohorts: dict[str, Artifact], where: str) -> None:
    made = combine([Part(cohorts["phantom"], ("train",)), Part(cohorts["iu"])], where)
    truth = Cohort.open(made).truth()
    assert truth is not None
    assert set(truth["study_id"].to_pylist()) == names_of(cohorts["phantom"], "train")
    without = combine([Part(cohorts["mimic"]), Part(cohorts["iu"])], where)
    assert Cohort.open(without).truth() is None


def test_a_combined_cohort_is_a_part_like_any_other(cohorts: dict[str, Artifact], where: str) -> None:
    two = combine([Part(cohorts["mimic"]), Part(cohorts["iu"])], where)
    three = combine([Part(two), Part(cohorts["phantom"])], where)
    at_once = combine([Part(cohorts[name]) for name in ("mimic", "iu", "phantom")], where)
    assert Cohort.open(three).index.corpus == "iu_xray+mimic_cxr+phantom"
    assert Cohort.open(three).studies() == Cohort.open(at_once).studies()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no cohort is given"),
        ({"mimic": (), "wide": ()}, r"sizes 64 \(stretch\) and 96 \(stretch\): stage .* alike"),
        ({"mimic": (), "padded": ()}, r"sizes 64 \(pad\) and 64 \(stretch\)"),
        ({"mimic": ("zero_shot",)}, "no study in split zero_shot; it has test, train, validate: name one"),
        (
            {"iu": (), "iu held out": ()},
            r"11 studies are in two of the cohorts, .* such as iu_xray/c\d+: take",
        ),
        ({"mimic": (), "namesake": ()}, "2 studies are in two .* have the id of another one there"),
        ({"mimic": (), "rexrank": ()}, "15 studies are in two of the cohorts"),
        (
            {"mimic": (), "seed": ()},
            r"[0-9]+ studies are of a patient .* such as mimic_cxr/n\d+ \(\w+, elsewhere",
        ),
        (
            {"iu": (), "without island": ()},
            r"are to train or validate .* such as iu_xray/c\d+ \(\w+\), which",
        ),
        ({"iu": (), "rexrank held out": ()}, r"10 studies are to train or validate .* such as iu_xray/c"),
    ],
)
def test_what_cannot_be_one_cohort_is_refused(
    cohorts: dict[str, Artifact], where: str, given: dict[str, Any], said: str
) -> None:
    before = set(Path(where, "cohort").iterdir())
    with pytest.raises(UserError, match=said) as refused:
        combine([Part(cohorts[name], splits) for name, splits in given.items()], where)
    assert set(Path(where, "cohort").iterdir()) == before
    patients = {study.patient_id for name in given for study in Cohort.open(cohorts[name]).studies()}
    assert not [patient for patient in patients if patient in str(refused.value).replace(where, "").split()]


def test_what_is_refused_whole_may_be_taken_in_part(cohorts: dict[str, Artifact], where: str) -> None:
    made = combine([Part(cohorts["without island"]), Part(cohorts["iu"], ("test",))], where)
    assert names_of(made, "train") == names_of(cohorts["without island"], "train")


def test_a_cohort_of_another_store_or_given_twice_is_refused(
    cohorts: dict[str, Artifact], where: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"lies in another store than .*: stage it there, or name its own"):
        combine([Part(cohorts["mimic"])], str(tmp_path / "other"))
    with pytest.raises(UserError, match="is given twice: name it once"):
        combine([Part(cohorts["mimic"], ("train",)), Part(cohorts["mimic"], ("test",))], where)


def test_a_missing_shard_is_named(cohorts: dict[str, Artifact], where: str) -> None:
    gone = Cohort.open(cohorts["iu"]).index.shards[0]
    Path(where, gone.name).unlink()
    with pytest.raises(ArtifactError, match=f"{gone.file} is missing"):
        combine([Part(cohorts["mimic"]), Part(cohorts["iu"])], where)


def test_studies_withdrawn_since_are_in_no_combined_cohort(
    cohorts: dict[str, Artifact], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = [Part(cohorts["mimic"]), Part(cohorts["iu"])]
    combine(ours, where)
    withdraw(where, patients=["mimic_cxr/m002"])
    with pytest.raises(
        UserError, match=f"2 studies were withdrawn .* in {cohorts['mimic'].uri}: stage it again"
    ):
        combine(ours, where)
    again = Part(staged(where, ["mimic"], monkeypatch)["mimic"])
    made = combine([again, ours[1]], where)
    assert {"m004", "m005"} & names_of(made) == set()
    withdraw(where, studies=["rexgradient/x"])
    assert combine([again, ours[1]], where).uri == made.uri


def test_what_is_withdrawn_meanwhile_is_in_no_combined_cohort(
    cohorts: dict[str, Artifact], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(combining.card, "write", lambda *given: withdraw(where, ["iu_xray/c001"]))
    before = set(Path(where, "cohort").iterdir())
    with pytest.raises(UserError, match="withdrawn while cohorts were combined: stage theirs again"):
        combine([Part(cohorts["mimic"]), Part(cohorts["iu"])], where)
    assert set(Path(where, "cohort").iterdir()) == before


def test_lineage_goes_through_a_combined_cohort_and_gc_drops_it_with_its_part(
    cohorts: dict[str, Artifact], where: str
) -> None:
    both = combine([Part(cohorts["mimic"], ("train",)), Part(cohorts["iu"])], where)
    base = made(where, "base", {"cohort": cohorts["phantom"]}, source="hub")
    model = made(where, "sft", {"cohort": both, "parent": base})
    learned = min(names_of(both, "train") - {"m000"})
    held = min(names_of(cohorts["mimic"], "test"))
    asked = [f"{'iu_xray' if learned.startswith('c') else 'mimic_cxr'}/{learned}", f"mimic_cxr/{held}"]
    found = {one.uri: one for one in lineage(where, Withdrawn.of(asked)).reached}
    assert found[both.uri].held == {asked[0]}
    assert found[model.uri].learned == {asked[0]}
    withdraw(where, asked[:1])
    age(where)
    freed = gc(where, drop_withdrawn=True)
    assert both.uri in freed.cohorts
    reached = {one.uri: one for one in lineage(where, Withdrawn.of(asked)).reached}
    assert reached[model.uri].learned == {asked[0]}
    assert names_of(cohorts["phantom"])


def test_gc_keeps_what_only_a_combined_cohort_lists(cohorts: dict[str, Artifact], where: str) -> None:
    both = combine([Part(cohorts["wide"], ("train",))], where)
    shutil.rmtree(Path(cohorts["wide"].uri))
    age(where)
    gc(where)
    assert names_of(both)
    kept = {shard.sha256 for shard in Cohort.open(both).index.shards}
    assert kept <= shards(where)


def test_the_command_line_names_splits_before_the_cohort(
    cohorts: dict[str, Artifact], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*named: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["combine", "--store", where, *(part for one in named for part in ("--cohort", one))])
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out.strip(), printed.err

    mimic, iu = cohorts["mimic"].uri, cohorts["iu"].uri
    code, uri, err = run(mimic, f"test,validate={iu}")
    assert (code, names_of(open_artifact(uri))) == (
        0,
        names_of(cohorts["mimic"]) | names_of(cohorts["iu"], "test") | names_of(cohorts["iu"], "validate"),
    ), err
    assert f"unirg: tset={iu}: tset is no split (train, validate, test, zero_shot)" in run(f"tset={iu}")[2]
    assert run(f"{iu}/nowhere")[0] == 2
    assert parts([f"zero_shot,train={iu}"])[0].splits == ("train", "zero_shot")


def test_the_pipelines_component_combines_in_place_of_staging(
    cohorts: dict[str, Artifact], where: str
) -> None:
    from components.stage import stage as component

    given = [cohorts["mimic"].uri, f"train,test={cohorts['iu'].uri}"]
    uri = component.python_func(where, "paper/stage", ["nothing=1"], "", [], given, "")
    assert uri == combine(parts(given), where).uri


def test_cohorts_of_an_object_store_are_combined_there(
    moto_s3: S3, monkeypatch: pytest.MonkeyPatch, cache: Path, original: tuple[Path, dict[str, str]]
) -> None:
    bucket = moto_s3.bucket()
    store = f"s3://{bucket}/store"
    found = staged(store, ["wide", "phantom"], monkeypatch)
    with pytest.raises(UserError, match="sizes 64"):
        combine([Part(one) for one in found.values()], store)
    made = combine([Part(found["phantom"], ("train",))], store + "/")
    assert names_of(open_artifact(made.uri)) == names_of(found["phantom"], "train")
