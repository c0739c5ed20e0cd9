"""The cache of scores: right values or none, whatever other processes, kills and bad disks do to the file."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unirg.errors import UserError
from unirg.metrics.cache import Cache, pair_digest, text_digest

ROOT = Path(__file__).parents[2]


def digests(count: int) -> list[bytes]:
    return [text_digest(str(number)) for number in range(count)]


def value(digest: bytes) -> bytes:
    """What every writer under test puts for a digest: long enough to need several pages."""
    return digest * 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores.cache"


def test_a_value_comes_back_and_an_absent_one_is_none(path: Path) -> None:
    cache = Cache(path)
    a, b = digests(2)
    cache.put("scorer", {a: b"", b: b"\0\xff"})
    assert cache.get("scorer", [b, text_digest("absent"), a, b]) == [b"\0\xff", None, b"", b"\0\xff"]
    assert cache.get("scorer", []) == []


def test_another_scorer_identity_finds_nothing(path: Path) -> None:
    cache = Cache(path)
    (digest,) = digests(1)
    cache.put("bertscore fp32", {digest: b"x"})
    assert cache.get("bertscore bf16", [digest]) == [None]


def test_a_newer_value_takes_the_place_of_an_older_one(path: Path) -> None:
    cache = Cache(path)
    (digest,) = digests(1)
    cache.put("s", {digest: b"old"})
    cache.put("s", {digest: b"new"})
    assert cache.get("s", [digest]) == [b"new"]


def test_more_keys_than_one_query_holds(path: Path) -> None:
    cache = Cache(path)
    many = digests(1300)
    cache.put("s", {digest: value(digest) for digest in many[::2]})
    found = cache.get("s", many)
    assert found == [value(digest) if row % 2 == 0 else None for row, digest in enumerate(many)]


def test_values_outlive_the_process_and_no_text_is_in_the_file(path: Path) -> None:
    (digest,) = digests(1)
    first = Cache(path)
    first.put("s", {digest: b"1.5", text_digest("CANARY Jane Doe"): b"2.5"})
    assert Cache(path).get("s", [digest]) == [b"1.5"]
    first.close()
    assert b"CANARY" not in b"".join(file.read_bytes() for file in path.parent.iterdir())


@settings(max_examples=50)
@given(st.text(), st.text(), st.text(), st.text())
def test_digests_tell_pairs_apart(a: str, b: str, c: str, d: str) -> None:
    assert (pair_digest(a, b) == pair_digest(c, d)) == ((a, b) == (c, d))


def test_any_string_has_a_digest() -> None:
    assert len(text_digest("\ud800 \U0001f600")) == 32


def test_a_flipped_byte_is_never_returned(path: Path) -> None:
    cache = Cache(path)
    some = digests(40)
    cache.put("s", {digest: value(digest) for digest in some})
    cache.close()
    whole = path.read_bytes()
    spots = random.Random(0).sample(range(100, len(whole)), 150)
    outcomes = set()
    for spot in spots:
        path.write_bytes(whole[:spot] + bytes([whole[spot] ^ 0x10]) + whole[spot + 1 :])
        try:
            damaged = Cache(path)
            found = damaged.get("s", some)
            damaged.close()
        except UserError:
            outcomes.add("refused")
            continue
        assert all(one in (None, value(digest)) for one, digest in zip(found, some, strict=True))
        outcomes.add("lost" if None in found else "whole")
    assert "lost" in outcomes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"study_id,candidate\n" * 200, "is damaged or no cache at all: delete it"),
        (b"SQLite format 3\0" + b"\xff" * 4096, "is damaged or no cache at all: delete it"),
    ],
)
def test_a_file_that_is_no_cache_is_named_with_the_remedy(path: Path, content: bytes, said: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as refused:
        Cache(path)
    assert str(path) in str(refused.value)
    assert path.read_bytes() == content


def test_a_file_cut_short_is_named_with_the_remedy(path: Path) -> None:
    cache = Cache(path)
    some = digests(40)
    cache.put("s", {digest: value(digest) for digest in some})
    cache.close()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="delete it"):
        Cache(path).get("s", some)


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE patients (name)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(UserError, match="another program's database"):
        Cache(path)
    assert path.read_bytes() == before


def test_another_layout_is_refused_with_the_remedy(path: Path) -> None:
    Cache(path).close()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 7")
    other.close()
    with pytest.raises(UserError, match="has layout 7, this version of unirg reads 1: delete it"):
        Cache(path)


def test_a_place_where_no_file_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name another file"):
        Cache(tmp_path / "file" / "cache")
    with pytest.raises(UserError, match="name another file"):
        Cache(tmp_path)


def test_a_full_disk_is_told_once_and_costs_nothing_else(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Cache(path)
    kept, *others = digests(300)
    cache.put("s", {kept: b"1"})
    (pages,) = cache._database.execute("PRAGMA page_count").fetchone()
    cache._database.execute(f"PRAGMA max_page_count = {pages + 2}")  # SQLite's own way to be full
    for _ in range(3):
        cache.put("s", {digest: value(digest) for digest in others})
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "takes no more scores (database or disk is full)" in said
    assert cache.get("s", [kept, others[0]]) == [b"1", None]


def test_threads_may_share_one_cache(path: Path) -> None:
    cache = Cache(path)
    some = digests(60)

    def work(start: int) -> None:
        for digest in some[start::4]:
            cache.put("s", {digest: value(digest)})
            assert cache.get("s", [digest]) == [value(digest)]

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.get("s", some) == [value(digest) for digest in some]


WORKER = """
import random, sys
from pathlib import Path
from unirg.metrics.cache import Cache, text_digest

path, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
order = random.Random(seed)
some = [text_digest(str(number)) for number in range(200)]
cache = Cache(path)
print("ready", flush=True)
for _ in range(rounds):
    chosen = order.sample(some, 40)
    for digest, found in zip(chosen, cache.get("s", chosen), strict=True):
        assert found in (None, digest * 100)
    cache.put("s", {digest: digest * 100 for digest in chosen})
"""


def start(path: Path, seed: int, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(path), str(seed), str(rounds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_four_processes_share_one_file_from_its_creation_on(path: Path) -> None:
    workers = [start(path, seed, 40) for seed in range(4)]
    for worker in workers:
        _, err = worker.communicate(timeout=100)
        assert worker.returncode == 0, err
    some = digests(200)
    assert Cache(path).get("s", some) == [value(digest) for digest in some]


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(path: Path) -> None:
    moments = random.Random(1)
    for round_ in range(5):
        writer = start(path, round_, 100_000)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.1))
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        cache = Cache(path)
        some = digests(200)
        found = cache.get("s", some)
        assert all(one in (None, value(digest)) for one, digest in zip(found, some, strict=True))
        assert cache._database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        cache.put("s", {some[0]: value(some[0])})  # the dead writer's lock is gone
        cache.close()
