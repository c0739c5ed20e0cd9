"""Artifacts: identity is a law, a commit is all or nothing, and damage is found and named."""

from __future__ import annotations

import fcntl
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.artifacts import Inner, Settings, build
from tests.conftest import S3
from unirg import artifact, storage
from unirg.artifact import Artifact, ArtifactError, Manifest, action_key, gc_lock, open_artifact
from unirg.cohort.stage import StageConfig
from unirg.errors import UserError

ROOT = Path(__file__).parent.parent
REAL = pytest.mark.s3


# Identity

names = st.text(max_size=8)
inners = st.builds(Inner, depth=st.integers(0, 9), threads=st.just(1))
settings = st.builds(
    Settings,
    rate=st.floats(allow_nan=False, allow_infinity=False),
    name=names,
    parts=st.lists(names, max_size=3).map(tuple),
    inner=inners,
)
identities = st.tuples(
    st.sampled_from(["cohort", "sft"]),
    st.integers(1, 3),
    settings,
    st.dictionaries(st.sampled_from(["cohort", "parent"]), st.text("abc", min_size=1, max_size=3)),
)


@given(identities, st.integers(0, 64), names, st.integers(1, 64))
def test_operational_fields_never_change_the_key(
    identity: tuple[str, int, Settings, dict[str, str]], workers: int, url: str, threads: int
) -> None:
    stage, version, config, inputs = identity
    other = config.model_copy(
        update={
            "workers": workers,
            "url": url,
            "inner": config.inner.model_copy(update={"threads": threads}),
        }
    )
    assert action_key(stage, version, config, inputs) == action_key(stage, version, other, inputs)


@given(identities, identities)
def test_anything_else_changes_the_key(
    first: tuple[str, int, Settings, dict[str, str]], second: tuple[str, int, Settings, dict[str, str]]
) -> None:
    assume(first != second)
    assert action_key(*first) != action_key(*second)


@given(identities, st.data())
def test_each_single_identity_field_changes_the_key(
    identity: tuple[str, int, Settings, dict[str, str]], data: st.DataObject
) -> None:
    stage, version, config, inputs = identity
    field = data.draw(st.sampled_from(["rate", "name", "parts", "inner"]))
    value = data.draw(
        {"rate": st.floats(0, 1), "name": names, "parts": st.tuples(names), "inner": inners}[field]
    )
    assume(value != getattr(config, field))
    other = config.model_copy(update={field: value})
    assert action_key(stage, version, config, inputs) != action_key(stage, version, other, inputs)


@given(st.integers(0, 64), st.integers(0, 64))
def test_how_many_processes_decode_is_no_part_of_a_cohorts_identity(first: int, second: int) -> None:
    one, other = StageConfig(workers=first, data="/a"), StageConfig(workers=second, data="/b")
    assert action_key("cohort", 1, one, {}) == action_key("cohort", 1, other, {})


def test_an_input_counts_by_its_digest_wherever_it_lies(tmp_path: Path) -> None:
    here, there = build(str(tmp_path / "here")), build(str(tmp_path / "there"))
    assert here.uri != there.uri
    keys = {action_key("next", 1, Settings(), {"input": made}) for made in (here, there)}
    assert keys == {action_key("next", 1, Settings(), {"input": here.digest})}


def test_the_output_digest_is_over_content_alone(tmp_path: Path) -> None:
    first = build(str(tmp_path / "1"), log="took 3 s", config=Settings(workers=1))
    again = build(str(tmp_path / "2"), log="took 5 s", config=Settings(workers=2))
    other = build(str(tmp_path / "3"), content="other")
    assert first.digest == again.digest
    assert first.digest != other.digest
    assert first.path("logs/log.txt").read_text() != again.path("logs/log.txt").read_text()


def test_a_renamed_file_changes_the_output_digest(tmp_path: Path) -> None:
    made = []
    for number, name in enumerate(("a", "b")):
        with artifact.draft(str(tmp_path / str(number)), "demo", 1, Settings(), {}) as draft:
            (draft.out / name).write_text("same")
            made.append(draft.commit())
    assert made[0].digest != made[1].digest


# What a commit leaves


def test_a_committed_artifact_tells_where_it_came_from(store: str) -> None:
    source = build(store)
    with artifact.draft(
        store, "next", 7, Settings(name="x", workers=3), {"source": source, "c": "d"}
    ) as draft:
        (draft.out / "result").write_text("r")
        made = draft.commit({"rows": 1, "share": 0.5, "kind": "toy"})
    again = open_artifact(made.uri, ("next", "other"))
    manifest = again.manifest
    assert again == made
    assert (manifest.stage, manifest.version) == ("next", 7)
    assert manifest.counts == {"rows": 1, "share": 0.5, "kind": "toy"}
    assert manifest.inputs["source"].digest == source.digest
    assert manifest.inputs["source"].uri == source.uri
    assert manifest.inputs["c"].uri is None
    assert manifest.config["workers"] == 3
    assert manifest.software["python"] == sys.version.split()[0]
    assert list(manifest.files) == ["result"]
    assert again.store == store.removeprefix("file://")
    assert json.loads(again.path("resolved_config.json").read_text())["name"] == "x"


def test_a_stage_that_finds_its_key_returns_that_artifact(store: str) -> None:
    first = build(store, content="first")
    assert build(store, content="never written") == first
    assert build(store, config=Settings(name="b"), content="second").uri != first.uri


def test_every_file_comes_back(store: str) -> None:
    made = build(store, content="text")
    assert made.path("data.txt").read_text() == "text"
    assert made.path("logs/log.txt").read_text() == "log"
    assert (made.directory / "deep" / "er" / "data.txt").read_text() == "texttext"


def test_what_is_not_in_the_manifest_is_not_read(tmp_path: Path) -> None:
    made = build(str(tmp_path))
    (Path(made.uri) / "stray.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"no file stray\.txt: it has data\.txt, deep/er/data\.txt"):
        made.path("stray.txt")


def test_work_in_progress_is_kept_for_the_rerun_and_gone_after_the_commit(tmp_path: Path) -> None:
    def attempt(fail: bool) -> tuple[list[str], list[str]]:
        with artifact.draft(str(tmp_path), "demo", 1, Settings(), {}) as draft:
            found = (
                [path.name for path in draft.scratch.iterdir()],
                [path.name for path in draft.out.iterdir()],
            )
            (draft.scratch / "note").write_text("half done")
            (draft.out / "half").write_text("half")
            if fail:
                raise KeyboardInterrupt
            draft.commit()
        return found

    with pytest.raises(KeyboardInterrupt):
        attempt(fail=True)
    scratch, out = attempt(fail=False)
    assert (scratch, out) == (["note"], [])
    assert [path for path in (tmp_path / ".work").iterdir() if path.is_dir()] == []


def test_what_a_process_killed_after_its_commit_left_goes_unless_somebody_is_at_it(tmp_path: Path) -> None:
    made = build(str(tmp_path))
    (lock,) = (tmp_path / ".work").glob("demo-*.lock")
    left = lock.with_suffix("") / "scratch" / "intake.sqlite"
    left.parent.mkdir(parents=True)
    left.write_text("a path that names a patient")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert build(str(tmp_path)) == made
        assert left.exists()
    assert build(str(tmp_path)) == made
    assert not lock.with_suffix("").exists()


def test_a_commit_waits_for_gcs_removal(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with gc_lock(str(tmp_path), exclusive=True):
            building = pool.submit(build, str(tmp_path))
            with pytest.raises(TimeoutError):
                building.result(0.5)
        assert Path(building.result(60).uri, "manifest.json").exists()


# Opening what is absent, of another kind, or damaged


def test_nothing_there_is_said_so(store: str) -> None:
    for uri in (store, f"{store}/demo/0123456789abcdef"):
        with pytest.raises(ArtifactError, match=r"no artifact at .*an unfinished run leaves none"):
            open_artifact(uri)


def test_a_file_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="no artifact"):
        open_artifact(str(tmp_path / "file"))


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="there is a file where a folder should be"):
        build(str(tmp_path / "file"))


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    uri = Path(build(str(tmp_path)).uri)
    (uri / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="is in the way and no artifact: move it elsewhere"):
        build(str(tmp_path))
    assert (uri / "data.txt").exists()


@pytest.mark.parametrize("text", ["", "{}", "null", '{"stage": "demo"}', "\xff\x00", "[" * 5000])
def test_a_manifest_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    uri = build(str(tmp_path)).uri
    (Path(uri) / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=r"manifest\.json is not a manifest of this version"):
        open_artifact(uri)


def test_another_stages_artifact_is_refused_naming_both(store: str) -> None:
    uri = build(store).uri
    with pytest.raises(ArtifactError, match="made by stage demo; this needs sft or grpo"):
        open_artifact(uri, ("sft", "grpo"))


def _damage(made: Artifact, name: str, content: bytes | None) -> None:
    """Replace or delete a file of an artifact where it lies."""
    fs, path = storage.open_fs(made.uri_of(name))
    if content is None:
        fs.rm(path)
    else:
        fs.pipe_file(path, content)


@pytest.mark.parametrize("store", ["file", "moto_s3"], indirect=True)
@pytest.mark.parametrize("name", ["data.txt", "deep/er/data.txt", "logs/log.txt"])
@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "missing"), (b"", "truncated or altered"), (b"co", "truncated or altered"), ("flip", "altered")],
)
def test_a_damaged_file_is_found_when_read_and_named(
    store: str, name: str, content: bytes | str | None, said: str, tmp_path: Path
) -> None:
    made = build(store)
    before = storage.read_bytes(made.uri_of(name))
    flipped = bytes([before[0] ^ 1]) + before[1:]
    _damage(made, name, flipped if isinstance(content, str) else content)
    reader = open_artifact(made.uri)
    with pytest.raises(ArtifactError, match=rf"{name} is (missing|{said}).*run its stage again"):
        reader.path(name)
    if not name.startswith("logs/"):
        with pytest.raises(ArtifactError, match=said):
            _ = open_artifact(made.uri).directory


def test_a_damaged_copy_in_the_cache_is_fetched_again(moto_s3: S3, cache: Path) -> None:
    made = build(f"s3://{moto_s3.bucket()}/store")
    local = made.path("data.txt")
    assert local.is_relative_to(cache)
    local.write_text("damaged")
    assert made.path("data.txt").read_text() == "content"


def test_a_verified_copy_in_the_cache_is_read_without_the_store(moto_s3: S3, cache: Path) -> None:
    made = build(f"s3://{moto_s3.bucket()}/store")
    made.path("data.txt")
    _damage(made, "data.txt", None)
    assert open_artifact(made.uri).path("data.txt").read_text() == "content"


def test_a_count_that_is_no_number_stops_before_the_commit(tmp_path: Path) -> None:
    with artifact.draft(str(tmp_path), "demo", 1, Settings(), {}) as draft:
        with pytest.raises(ValidationError):
            draft.commit({"reward": float("nan")})
        assert not list(tmp_path.glob("demo/*"))
        assert draft.commit({"reward": 0.5}).manifest.counts == {"reward": 0.5}


def test_a_manifest_survives_json(tmp_path: Path) -> None:
    manifest = build(str(tmp_path)).manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
