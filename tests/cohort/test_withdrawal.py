"""Tombstones: nothing withdrawn is forgotten, whoever wrote it, and no number of a hospital is written."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.canary import CANARY, everything_shown
from tests.conftest import S3
from unirg import storage
from unirg.cohort.corpora import Corpus
from unirg.cohort.corpora.chexpert_plus import CheXpertPlus
from unirg.cohort.corpora.institution import Institution
from unirg.cohort.corpora.iu_xray import IUXray
from unirg.cohort.corpora.mimic_cxr import MimicCXR
from unirg.cohort.corpora.phantom import Phantom
from unirg.cohort.corpora.rexgradient import ReXGradient
from unirg.cohort.corpora.rexrank import SETS
from unirg.cohort.withdrawal import PUBLIC, Withdrawn, ids_from_file, own_ids, withdraw
from unirg.errors import UserError
from unirg.study import Study, keyed_id

KEY = "5a" * 32
ids = st.lists(st.from_regex(r"(phantom|iu_xray)/[A-Za-z0-9][A-Za-z0-9_.-]{0,4}", fullmatch=True), max_size=5)


def study(study_id: str, patient_id: str = "p1", corpus: str = "phantom") -> Study:
    return Study(corpus=corpus, study_id=study_id, patient_id=patient_id, institution="north")


def test_a_store_without_withdrawals_withdraws_nothing(store: str) -> None:
    found = Withdrawn.load(store)
    assert not found
    assert not found.covers(study("s1"))


def test_a_withdrawn_study_or_patient_is_covered_and_nobody_else(store: str) -> None:
    withdraw(store, studies=["phantom/s1"], patients=["phantom/p9"])
    found = Withdrawn.load(store)
    assert found
    assert found.covers(study("s1"))
    assert found.covers(study("s7", "p9"))
    assert not found.covers(study("s2"))
    assert not found.covers(study("s1", corpus="iu_xray"))
    assert not found.covers(study("p9"))
    assert not found.covers(study("s3", "s1"))


def test_ids_with_slashes_of_their_own_are_covered(tmp_path: Path) -> None:
    withdraw(str(tmp_path), studies=["chexpert_plus/patient1/study2"])
    assert Withdrawn.load(str(tmp_path)).covers(study("patient1/study2", corpus="chexpert_plus"))


def test_a_bucket_that_is_not_there_is_no_store_without_withdrawals(moto_s3: S3) -> None:
    with pytest.raises(UserError, match="the bucket does not exist"):
        Withdrawn.load("s3://unirg-test-none/store")


def test_withdrawing_again_changes_nothing(store: str) -> None:
    first = withdraw(store, studies=["phantom/s1", "phantom/s2"])
    before = Withdrawn.load(store)
    assert withdraw(store, studies=["phantom/s2", "phantom/s1", "phantom/s2"]) == first
    assert Withdrawn.load(store) == before


def test_writers_at_once_lose_nothing(store: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: withdraw(store, studies=[f"phantom/s{n}", "phantom/shared"]), range(24)))
    assert Withdrawn.load(store).studies == {f"phantom/s{n}" for n in range(24)} | {"phantom/shared"}


@given(ids, ids, st.data())
def test_the_digest_depends_on_the_set_alone(
    studies: list[str], patients: list[str], data: st.DataObject
) -> None:
    again = data.draw(st.permutations(studies + studies))
    first, second = Withdrawn.of(studies, patients), Withdrawn.of(again, patients * 2)
    assert first.digest == second.digest
    if set(studies) != set(patients):
        assert first.digest != Withdrawn.of(patients, studies).digest


def test_the_digest_does_not_tell_in_how_many_entries_the_set_came(tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    withdraw(one, studies=["phantom/s1"], patients=["phantom/p1"], reason_code="consent")
    withdraw(two, studies=["phantom/s1"])
    withdraw(two, patients=["phantom/p1"])
    assert Withdrawn.load(one).digest == Withdrawn.load(two).digest


def test_another_corpus_is_not_concerned() -> None:
    both = Withdrawn.of(["phantom/s1", "iu_xray/s1"], ["iu_xray/p1"])
    assert both.of_corpus("phantom") == Withdrawn.of(["phantom/s1"])
    assert not both.of_corpus("phanto")


@pytest.mark.parametrize(
    "value", ["", "s1", "/etc/passwd", "phantom/", "phantom/../x y", "a/b\0", f"phantom/{CANARY}", "a/b\n"]
)
def test_what_is_no_id_is_refused_without_being_shown(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match="study 2 is no id such as corpus/study_id") as refused:
        withdraw(str(tmp_path), studies=["phantom/s1", value])
    assert CANARY not in everything_shown(refused.value)
    assert not (tmp_path / "withdrawn").exists()


def test_nothing_and_a_free_text_as_reason_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to withdraw"):
        withdraw(str(tmp_path))
    with pytest.raises(UserError, match="the reason is a code"):
        withdraw(str(tmp_path), studies=["phantom/s1"], reason_code=CANARY)


@pytest.mark.parametrize("value", ["north/0451", "north/MRN0451", "phantoms/p1", f"north/{'A' * 24}"])
def test_an_institutions_own_number_is_neither_written_nor_shown(tmp_path: Path, value: str) -> None:
    with pytest.raises(
        UserError, match=r"patient 2 is neither of a public corpus .* --institution"
    ) as refused:
        withdraw(str(tmp_path), patients=["phantom/p1", value])
    assert "0451" not in everything_shown(refused.value)
    assert not (tmp_path / "withdrawn").exists()
    withdraw(str(tmp_path), patients=[f"north/{keyed_id(bytes.fromhex(KEY), 'patient', '0451')}"])


@pytest.mark.parametrize("adapter", [Phantom, IUXray, MimicCXR, CheXpertPlus, ReXGradient])
def test_every_public_corpus_is_known(adapter: type[Corpus]) -> None:
    assert adapter.name in PUBLIC
    assert {one.corpus for one in SETS.values()} == {
        f"rexrank_{name}" for name in PUBLIC if name != "phantom"
    }


@pytest.mark.parametrize(
    ("corpus", "study_id", "patient_id", "own"),
    [
        ("mimic_cxr", "p10_p10999901_s50999901", "p10999901", "s50999901"),
        ("iu_xray", "CXR1_1_IM-0001-3001", "CXR1", "CXR1"),
        ("chexpert_plus", "patient99991_study1", "patient99991", "patient99991_study1"),
        ("rexgradient", "pGRDN1_aGRDN2_s1", "GRDN1", "pGRDN1_aGRDN2_s1"),
    ],
)
def test_what_is_withdrawn_of_a_corpus_is_withdrawn_of_rexranks_files_of_it(
    corpus: str, study_id: str, patient_id: str, own: str
) -> None:
    shown = study(study_id, patient_id, f"rexrank_{corpus}")
    for asked in (Withdrawn.of([f"{corpus}/{own}"]), Withdrawn.of(patients=[f"{corpus}/{patient_id}"])):
        assert asked.of_corpus(f"rexrank_{corpus}") == asked
        assert asked.covers(shown)
        assert asked.naming(shown.corpus, study_id, patient_id) == asked
    assert not Withdrawn.of([f"{corpus}/{own}1"], [f"{corpus}/{patient_id}1"]).covers(shown)


# Damage: to pass over an entry would bring a patient back


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"studies":[],"patients":[],"reason":"x"}'])
def test_a_damaged_entry_stops_whoever_asks(tmp_path: Path, damage: bytes) -> None:
    uri = withdraw(str(tmp_path), studies=["phantom/s1"])
    Path(uri).write_bytes(damage)
    with pytest.raises(UserError, match="is altered or truncated"):
        Withdrawn.load(str(tmp_path))


def test_an_entry_of_another_version_and_a_stray_file_are_named(tmp_path: Path) -> None:
    withdraw(str(tmp_path), studies=["phantom/s1"])
    newer = b'{"hospitals":["north"]}'
    path = tmp_path / "withdrawn" / f"{storage.sha256(newer)}.json"
    path.write_bytes(newer)
    with pytest.raises(UserError, match="no withdrawal of this version"):
        Withdrawn.load(str(tmp_path))
    path.rename(path.with_name("ids.csv"))
    with pytest.raises(UserError, match=r"ids\.csv is no withdrawal: remove it"):
        Withdrawn.load(str(tmp_path))


def test_what_a_killed_writer_left_beside_is_passed_over(tmp_path: Path) -> None:
    uri = withdraw(str(tmp_path), studies=["phantom/s1"])
    aside = Path(uri).with_name(f".{Path(uri).name}.0123")
    aside.write_bytes(b"{")
    assert Withdrawn.load(str(tmp_path)).studies == {"phantom/s1"}


# Files of ids


def test_ids_come_from_a_text_with_remarks_and_from_a_csv(tmp_path: Path) -> None:
    text = tmp_path / "ids.txt"
    text.write_bytes(b"\xef\xbb\xbf# by letter of May\r\nphantom/s1\r\n\r\n  phantom/s2 # twice\r\n")
    table = tmp_path / "ids.csv"
    table.write_text('Note,Study_ID\n"a, b",phantom/s1\n"two\nlines",phantom/s2\n')
    assert ids_from_file(str(text), "study") == ["phantom/s1", "phantom/s2"]
    assert ids_from_file(str(table), "study") == ["phantom/s1", "phantom/s2"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("ids.txt", b"phantom/s1\nphantom/s2\nJane Doe\n", "line 3 is no id such as corpus/study_id"),
        ("ids.txt", b"phantom/s1\n" + b"x" * 10_000_000, "line 2 has more than 4096 characters"),
        ("ids.txt", b"phantom/s1\n\xff\xfe\n", "is not UTF-8"),
        ("ids.txt", b"# nothing\n", "holds no id"),
        ("ids.csv", b"", "no column study_id or accession"),
        ("ids.csv", b"id\nphantom/s1\n", "no column study_id or accession"),
        ("ids.csv", b"study_id,note\nphantom/s1,x\nphantom/s2\n", "line 3 has not as many fields as line 1"),
        ("ids.csv", b"study_id\nphantom/s1\n=cmd()\n", "line 3 is no id"),
        ("ids.csv", b'study_id,note\nphantom/s1,"x\n', "line 2 is not valid CSV"),
        ("ids.csv", b"study_id,note\nphantom/s1,x\n,y\n", "line 3 is no id"),
    ],
)
def test_a_broken_file_is_refused_by_its_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as refused:
        ids_from_file(str(path), "study")
    shown = everything_shown(refused.value)
    assert "Jane" not in shown
    assert str(tmp_path) not in str(refused.value)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the file of ids does not exist"):
        ids_from_file(str(tmp_path / "none.txt"), "patient")


# An institution's own numbers


def test_a_hospital_withdraws_by_its_own_numbers_and_none_is_written(tmp_path: Path) -> None:
    table = tmp_path / "data" / "studies.csv"
    table.parent.mkdir()
    table.write_text("accession,mrn,images,findings\nACC-1,0451,a.png,Clear.\nACC-2,0452,b.png,Clear.\n")
    staged = [record for record in Institution(str(table), bytes.fromhex(KEY), "north").records()]
    environ = {"UNIRG_SITE_KEY": KEY}
    store = tmp_path / "store"
    numbers = tmp_path / "mrns.csv"
    numbers.write_text("MRN\n 0452 \n")
    withdraw(str(store), own_ids("north", "study", ["ACC-1"], environ))
    assert [Withdrawn.load(str(store)).covers(one) for one in staged if isinstance(one, Study)] == [
        True,
        False,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIRG_SITE_KEY", KEY)
        withdraw(str(store), patients=ids_from_file(str(numbers), "patient", "north"))
    found = Withdrawn.load(str(store))
    assert [found.covers(one) for one in staged if isinstance(one, Study)] == [True, True]
    for path in (store / "withdrawn").iterdir():
        assert not any(number in path.read_text() + path.name for number in ("ACC-1", "0452"))


def test_of_an_institutions_own_table_the_column_counts_that_staging_reads(tmp_path: Path) -> None:
    table = tmp_path / "studies.csv"
    table.write_text("accession,study_id,mrn\nACC-1,S-1,1\nACC-2,,2\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIRG_SITE_KEY", KEY)
        found = ids_from_file(str(table), "study", "north")
    assert found == own_ids("north", "study", ["S-1", "ACC-2"], {"UNIRG_SITE_KEY": KEY})


@pytest.mark.parametrize("key", ["", "zz", "5a5a"])
def test_without_the_site_key_an_own_number_is_refused(key: str) -> None:
    with pytest.raises(UserError, match="export the one that the institution was staged with"):
        own_ids("north", "study", ["ACC-1"], {"UNIRG_SITE_KEY": key})


def test_an_empty_own_number_is_refused() -> None:
    with pytest.raises(UserError, match="patient 2 is empty"):
        own_ids("north", "patient", ["1", " "], {"UNIRG_SITE_KEY": KEY})
