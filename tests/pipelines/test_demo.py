"""The demo on real radiographs: interrupted, stopped, orphaned, then to its end; then with nothing to do."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests import runs
from unirg import artifact
from unirg.cohort.intake import NO_FRONTAL, NO_SECTIONS

SYSTEMS = [
    *("untrained", "sft", "grpo step 1", "grpo step 2"),
    *("sft, images permuted", "sft, sampled", "grpo step 1, sampled", "grpo step 2, sampled"),
    *("most-frequent-report", "copy-prior"),
]
SECOND_RUN_S = 90.0
"""What a run with nothing to do may take on a busy machine; on an idle one it takes about 12 s."""

ARGUMENTS = ["--corpus", "iu_xray", "--data", str(runs.IU_XRAY), "--store", "store"]

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not runs.IU_XRAY.is_dir(), reason=f"no radiographs at {runs.IU_XRAY}"),
    pytest.mark.timeout(900),
]


@dataclass(frozen=True)
class Finished:
    """A demo that has ended."""

    exit_code: int
    output: str
    seconds: float
    servers: frozenset[str]
    """Which of our servers were seen running."""
    left: tuple[str, ...]
    """Processes that were still there after it had ended."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def run(folder: Path) -> Finished:
    with runs.demo(folder, *ARGUMENTS) as demo, watched(demo) as servers:
        code = demo.wait(500)
        return Finished(code, demo.output, demo.seconds, frozenset(servers), tuple(demo.processes().values()))


class watched:
    """Looks, several times a second, which of our servers a run has started."""

    def __init__(self, demo: runs.Demo) -> None:
        self.demo, self.seen, self.ended = demo, set[str](), threading.Event()
        self.thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self.ended.wait(0.2):
            commands = " ".join(self.demo.processes().values())
            self.seen |= {server for server in (runs.PREDICTOR, runs.JUDGE) if server in commands}

    def __enter__(self) -> set[str]:
        self.thread.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


@pytest.fixture(scope="module")
def kept(folder: Path) -> dict[str, str]:
    """Digests of what two lives of the run have finished: one interrupted, one stopped."""
    store = folder / "store"
    with runs.demo(folder, *ARGUMENTS) as demo:
        runs.reaches(demo, "train-2")  # SFT
        time.sleep(1.0)
        demo.signal_group(signal.SIGINT)
        assert demo.wait(30) == 130, demo.output
        assert demo.output.rstrip().endswith(
            "demo: interrupted; finished work is kept, the same command goes on"
        )
        assert "Traceback" not in demo.output
        assert demo.wait_until_gone() == {}
    runs.assert_nothing_half_written(store)
    after_interrupt = runs.digests(store)
    assert {key.split("/")[0] for key in after_interrupt} >= {"cohort", "base"}

    with runs.demo(folder, *ARGUMENTS) as demo:
        runs.reaches(demo, "score", runs.PREDICTOR)
        os.kill(demo.process.pid, signal.SIGTERM)
        assert demo.wait(30) == 143, demo.output
        assert demo.output.rstrip().endswith("demo: stopped; finished work is kept, the same command goes on")
        assert demo.processes() == {}  # tasks, judge and predictor ended before it did
        assert re.search(r"sft: \d+ steps in ", demo.output)
    runs.assert_nothing_half_written(store)
    after_stop = runs.digests(store)
    assert after_stop.items() >= after_interrupt.items()
    return after_stop


@pytest.fixture(scope="module")
def first(folder: Path, kept: dict[str, str]) -> Finished:
    with runs.demo(folder, *ARGUMENTS) as orphaned:
        runs.reaches(orphaned, "score", runs.PREDICTOR)
        os.kill(orphaned.process.pid, signal.SIGKILL)  # the task and its predictor are orphans now
        orphaned.process.wait()
        finished = run(folder)
        assert orphaned.wait_until_gone() == {}
    return finished


@pytest.fixture(scope="module")
def made(folder: Path, first: Finished) -> dict[str, tuple[str, int]]:
    """Each artifact's digest and the time its manifest was written, before the second run."""
    times = {path.parent: path.stat().st_mtime_ns for path in runs.manifests(folder / "store")}
    found = runs.digests(folder / "store")
    return {key: (found[key], times[folder / "store" / key]) for key in found}


@pytest.fixture(scope="module")
def second(folder: Path, made: dict[str, tuple[str, int]]) -> Finished:
    return run(folder)


def test_interrupted_stopped_and_orphaned_the_demo_goes_on_each_time_and_ends_well(
    folder: Path, kept: dict[str, str], first: Finished
) -> None:
    assert first.exit_code == 0, first.output
    runs.assert_nothing_half_written(folder / "store")
    assert runs.digests(folder / "store").items() >= kept.items()


def test_every_system_stands_in_the_headline_with_intervals(first: Finished) -> None:
    _, found, table = first.output.partition("held-out studies")
    assert found
    assert "Composite reward" in table
    for system in SYSTEMS:
        number = r"-?\d+\.\d{3} \[-?\d+\.\d{3}, -?\d+\.\d{3}\]"
        assert re.search(rf"^{re.escape(system)}  +{number}  +{number}", table, re.MULTILINE), system
    assert "Errors are counted by: offline-judge" in table


def test_progress_names_each_task_as_people_call_it(first: Finished) -> None:
    finished = [name for name, _ in runs.COMMITTED.findall(first.output)]
    assert len(finished) == len(set(finished))
    scored = {name.removeprefix("score ") for name in finished if name.startswith("score ")}
    assert scored == set(SYSTEMS) - {"most-frequent-report", "copy-prior"}
    assert re.search(r"score: \d+ studies in ", first.output)


def test_the_demo_ends_with_where_the_report_lies_and_how_to_open_mlflow(first: Finished) -> None:
    assert report_of(first).is_file()
    command = re.search(
        r"^mlflow +.*mlflow ui --backend-store-uri sqlite:///(\S+) ", first.output, re.MULTILINE
    )
    assert command is not None
    assert Path(command[1]).read_bytes().startswith(b"SQLite format 3")
    assert re.search(
        r"open http://127\.0\.0\.1:5000/#/experiments/\w+/runs/\w{32}$", first.output, re.MULTILINE
    )


def report_of(run: Finished) -> Path:
    found = re.search(r"^report +(/\S+\.html)$", run.output, re.MULTILINE)
    assert found is not None, run.output
    return Path(found[1])


def test_studies_without_images_or_sections_are_counted_and_dropped(folder: Path, first: Finished) -> None:
    (cohort,) = (folder / "store" / "cohort").iterdir()
    counts = artifact.open_artifact(str(cohort), "cohort").manifest.counts
    dropped = {name: number for name, number in counts.items() if name.startswith("dropped.")}
    assert dropped == {f"dropped.{NO_FRONTAL}": 3919, f"dropped.{NO_SECTIONS}": 28}


class Page(HTMLParser):
    """What is in a page: open tags, and what it would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        if tag not in ("meta", "link", "img", "br", "hr", "input", "col", "source"):
            self.open.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href") and value and ":" in value]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def test_the_report_is_one_well_formed_page_with_radiographs_that_loads_nothing(first: Finished) -> None:
    page = Page()
    page.feed(report_of(first).read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    assert page.seen["table"] >= 1
    assert page.seen["img"] >= 1
    assert [source for source in page.loads if not source.startswith("data:")] == []


def test_the_reports_numbers_are_there_as_json(first: Finished) -> None:
    data = json.loads(report_of(first).with_name("report.json").read_text())
    text = json.dumps(data)
    assert all(json.dumps(system) in text for system in SYSTEMS)


def test_a_second_run_repeats_nothing_and_starts_no_model_server(
    folder: Path, first: Finished, made: dict[str, tuple[str, int]], second: Finished
) -> None:
    times = {path.parent: path.stat().st_mtime_ns for path in runs.manifests(folder / "store")}
    found = runs.digests(folder / "store")
    assert second.exit_code == 0, second.output
    assert {key: (found[key], times[folder / "store" / key]) for key in found} == made
    assert runs.PREDICTOR in first.servers  # so that its absence below says something
    assert runs.PREDICTOR not in second.servers
    assert " steps in " not in second.output


def test_a_second_run_ends_in_seconds_with_the_same_numbers(first: Finished, second: Finished) -> None:
    print(f"first run {first.seconds:.0f} s, second run {second.seconds:.0f} s")
    assert second.seconds < SECOND_RUN_S
    assert headline(second) == headline(first)


def headline(run: Finished) -> str:
    return run.output[run.output.index("held-out studies") : run.output.index("\nlogs ")]


def test_nothing_of_the_first_run_stays_behind(folder: Path, first: Finished) -> None:
    assert not first.left
    assert list((folder / "store" / ".work").glob("*/")) == []
