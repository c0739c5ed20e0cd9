"""A study: its rules, its form on disk, its keyed ids, and that it never shows what it holds."""

from __future__ import annotations

import io
import pickle
from datetime import UTC, datetime
from pprint import pformat
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.canary import CANARY, everything_shown
from unirg.errors import UserError
from unirg.study import SCHEMA, Image, Study, StudyError, from_table, keyed_id, to_table

IDS: dict[str, Any] = {
    "corpus": "mimic_cxr",
    "study_id": "s50414267",
    "patient_id": "p10000032",
    "institution": "bidmc",
}

safe_ids = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_./-]{0,20}\Z")
texts = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
images = st.builds(
    Image,
    view=st.sampled_from(["frontal", "lateral", "other", "unknown"]),
    projection=st.sampled_from(["PA", "AP", None]),
    uri=texts,
    data=st.one_of(st.none(), st.binary(max_size=40)),
)
times: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {
            "acquired_at": st.datetimes(),
            "acquired_basis": st.sampled_from(["timestamp", "date", "report_date", "ordinal"]),
        }
    ),
)


@st.composite
def studies(draw: st.DrawFn) -> Study:
    fields: dict[str, Any] = {name: draw(safe_ids) for name in IDS} | draw(times)
    for name in ("indication", "comparison", "findings", "impression", "race"):
        fields[name] = draw(texts)
    fields["split"] = draw(st.sampled_from([None, "train", "validate", "test", "zero_shot"]))
    fields["age"] = draw(st.one_of(st.none(), st.integers(0, 120)))
    fields["sex"] = draw(st.sampled_from([None, "F", "M", "O"]))
    fields["encounter"] = draw(st.one_of(st.none(), st.integers(1, 2**31 - 1)))
    fields["images"] = tuple(draw(st.lists(images, max_size=3)))
    fields["prior_study_id"] = draw(st.one_of(st.none(), safe_ids))
    assume(fields["prior_study_id"] != fields["study_id"])
    return Study.checked(**fields)


# On disk


@given(st.lists(studies(), max_size=4))
def test_studies_come_back_from_parquet_as_they_were(made: list[Study]) -> None:
    buffer = io.BytesIO()
    pq.write_table(to_table(made), buffer)
    assert list(from_table(pq.read_table(buffer))) == made
    assert list(from_table(to_table(made))) == made


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (pa.table({"a": [1]}), "a, acquired_at"),
        (to_table([]).drop_columns(["findings"]), "findings"),
        (to_table([]).append_column("extra", pa.array([], pa.string())), "extra"),
        (
            pa.table({n: pa.array(["x"] if n == "age" else [None]) for n in SCHEMA.names}),
            "types differ",
        ),
    ],
)
def test_another_table_is_refused_naming_its_columns(table: pa.Table, named: str) -> None:
    with pytest.raises(UserError, match=f"not a table of studies: {named}.*stage it again"):
        list(from_table(table))


def test_a_row_that_breaks_a_rule_is_named_by_id_and_field() -> None:
    row = {**Study(**IDS, findings=CANARY).model_dump(), "age": 130}
    with pytest.raises(StudyError, match=r"mimic_cxr: study s50414267: field age: .*120") as refused:
        list(from_table(pa.Table.from_pylist([row], schema=SCHEMA)))
    assert CANARY not in everything_shown(refused.value)


# Rules


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u00a0"])
@pytest.mark.parametrize("field", ["findings", "impression", "indication", "comparison", "race"])
def test_a_blank_text_is_a_missing_one(field: str, text: str) -> None:
    assert getattr(Study.checked(**IDS, **{field: text}), field) is None


@pytest.mark.parametrize(
    "wrong",
    ["", " s1", "s 1", "s1\n", "\ns1", "/s1", "../s1", "s*", "é", "x" * 129, None, 7, CANARY],
)
@pytest.mark.parametrize("field", list(IDS))
def test_an_id_is_short_and_of_plain_characters(field: str, wrong: Any) -> None:
    with pytest.raises(StudyError) as refused:
        Study.checked(**{**IDS, field: wrong})
    assert refused.value.field == field
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("age", -1),
        ("age", 121),
        ("age", 40.5),
        ("sex", "female"),
        ("split", "dev"),
        ("encounter", 0),
        ("acquired_basis", "guess"),
        ("findings", b"\xff"),
        ("findings", 7),
        ("findings", "half a surrogate \ud800"),
        ("images", None),
        ("nonsense", 1),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_field(field: str, value: Any) -> None:
    with pytest.raises(StudyError, match=f"mimic_cxr: study s50414267: field {field}: "):
        Study.checked(**IDS, **{field: value})


def test_time_and_its_basis_go_together() -> None:
    for half in ({"acquired_at": datetime(2180, 5, 6)}, {"acquired_basis": "date"}):
        with pytest.raises(StudyError, match="go together"):
            Study.checked(**IDS, **half)


def test_a_time_with_a_zone_is_refused_as_the_disk_would_drop_the_zone() -> None:
    with pytest.raises(StudyError, match=r"field acquired_at: .*timezone"):
        Study.checked(**IDS, acquired_at=datetime(2180, 5, 6, tzinfo=UTC), acquired_basis="date")


def test_a_study_is_not_its_own_prior() -> None:
    with pytest.raises(StudyError, match="names the study itself"):
        Study.checked(**IDS, prior_study_id=IDS["study_id"])


def test_a_study_does_not_change() -> None:
    with pytest.raises(ValidationError):
        Study(**IDS).findings = "other"


@pytest.mark.parametrize(
    ("views", "shown"),
    [
        ([], None),
        ([("lateral", None), ("unknown", "PA")], None),
        ([("frontal", None), ("frontal", "AP"), ("frontal", "PA")], 2),
        ([("frontal", None), ("frontal", "AP")], 1),
        ([("lateral", "PA"), ("frontal", None), ("frontal", None)], 1),
        ([("frontal", "PA"), ("frontal", "PA")], 0),
    ],
)
def test_the_policy_sees_pa_before_ap_before_unknown(views: list[tuple[Any, Any]], shown: int | None) -> None:
    given_ = tuple(Image(view=view, projection=projection) for view, projection in views)
    key = Study(**IDS, images=given_).key_image
    assert key is (None if shown is None else given_[shown])


# Silence


@pytest.mark.parametrize(
    "wrong",
    [
        {"age": CANARY},
        {"sex": CANARY},
        {"split": CANARY},
        {"race": [CANARY]},
        {"acquired_at": CANARY, "acquired_basis": CANARY},
        {"encounter": CANARY},
        {"findings": [CANARY]},
        {"findings": CANARY.encode() + b"\xff"},
        {"impression": {"text": CANARY}},
        {"indication": f"{CANARY} \ud800"},
        {"images": CANARY},
        {"images": [{"view": CANARY}]},
        {"images": [{"uri": [CANARY]}]},
        {"images": [{"data": {"x": CANARY}}]},
        {"prior_study_id": CANARY},
        *({name: CANARY} for name in IDS),
    ],
)
def test_a_broken_rule_never_shows_the_content(wrong: dict[str, Any]) -> None:
    with pytest.raises(StudyError) as refused:
        Study.checked(**{**IDS, "findings": CANARY, **wrong})
    assert CANARY not in everything_shown(refused.value)


def test_pydantics_own_error_shows_no_content_either() -> None:
    with pytest.raises(ValidationError) as refused:
        Study(**IDS, findings=CANARY, age=CANARY)  # type: ignore[arg-type]
    assert CANARY not in everything_shown(refused.value)
    with pytest.raises(ValidationError) as refused:
        Image(view=CANARY)  # type: ignore[arg-type]
    assert CANARY not in everything_shown(refused.value)


def test_a_study_prints_as_its_ids_alone() -> None:
    study = Study(
        **IDS,
        findings=CANARY,
        impression=CANARY,
        indication=CANARY,
        comparison=CANARY,
        images=(Image(uri=CANARY, data=CANARY.encode()),),
    )
    assert f"{study}" == repr(study) == pformat(study) == "Study(mimic_cxr/s50414267)"
    assert "Study(mimic_cxr/s50414267)" in f"{[study]} {(study, 1)}"
    assert CANARY not in f"{study.images} {study.images[0]!r} {study.images[0]} {list(study.__repr_args__())}"


def test_a_study_error_crosses_a_process_pool() -> None:
    error = StudyError("c", "s", "age", "too old")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.study_id, again.field) == (str(error), "s", "age")


# Keyed ids

keys = st.binary(min_size=16, max_size=40)
values = st.text(st.characters(exclude_categories=["Cs"]))


@given(keys, st.sampled_from(["study", "patient"]), values)
def test_a_keyed_id_is_stable_and_safe_to_print(key: bytes, kind: str, value: str) -> None:
    made = keyed_id(key, kind, value)
    assert made == keyed_id(key, kind, value)
    assert set(made) <= set("0123456789abcdef")
    assert len(made) == 24
    assert Study.checked(**{**IDS, "study_id": made}).study_id == made


@given(keys, keys, values, values)
def test_another_key_kind_or_value_gives_another_id(one: bytes, two: bytes, a: str, b: str) -> None:
    assume(a != b)
    assume(one.rstrip(b"\0") != two.rstrip(b"\0"))  # HMAC pads a key with zeros
    made = {keyed_id(one, "study", a), keyed_id(two, "study", a), keyed_id(one, "patient", a)}
    assert len(made | {keyed_id(one, "study", b)}) == 4


def test_the_keyed_id_is_the_published_construction() -> None:
    """`printf 'study\\0ACC1' | openssl dgst -sha256 -hmac 0123456789abcdef`, its first 24 digits."""
    assert keyed_id(b"0123456789abcdef", "study", "ACC1") == "91e09f5cada85cbf513724b5"


@pytest.mark.parametrize("key", [b"", b"123456789012345"])
def test_a_guessable_key_is_refused_with_the_command_that_makes_one(key: bytes) -> None:
    with pytest.raises(UserError, match="openssl rand -hex 32"):
        keyed_id(key, "study", CANARY)
