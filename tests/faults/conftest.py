from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

import pytest

from tests.faults import scoring_world
from tests.faults.scoring_world import Happened, World


@pytest.fixture(scope="session")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An archive of 150 drawn studies, and what an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("scoring")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIRG_CACHE", str(folder / "cache"))
        return scoring_world.make(folder)


@pytest.fixture
def happened(record_property: Callable[[str, object], None]) -> Happened:
    def tell(fault: str, times: Mapping[str, int], /) -> None:
        record_property("fault", [fault, dict(times)])

    return tell


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What a soak injected, and in how many runs: for the table of docs/scoring.md."""
    if config.option.markexpr != "soak":
        return
    runs, failed, times = Counter[str](), Counter[str](), defaultdict[str, Counter[str]](Counter)
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "fault":
                    fault, counted = value
                    runs[fault] += 1
                    failed[fault] += outcome == "failed"
                    times[fault].update(counted)
    for fault, number in runs.items():
        told = ", ".join(f"{name} {count}" for name, count in sorted(times[fault].items()))
        terminalreporter.write_line(f"{fault}: {number - failed[fault]} of {number} runs held; {told}")
