"""Several clients of one archive, several lives of one client, and what another shell sees of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.scoring import archives
from tests.scoring.stub import Answer, Stub, completion, question, seen, status
from unirg import storage
from unirg.artifact import Artifact, place
from unirg.errors import UserError
from unirg.scoring import archive as scoring
from unirg.scoring.archive import ScoreConfig, score, score_part
from unirg.scoring.client import EndpointGone
from unirg.scoring.engine import QUARANTINED
from unirg.scoring.ledger import Ledger

CONFIG = ScoreConfig(
    splits=("test",),
    segment_studies=8,
    range_studies=32,
    concurrency=4,
    patience_s=2.0,
    timeout_s=5.0,
    retries=2,
)
STUDIES = 120
"""In ranges of 32, 32, 32 and 24."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return archives.make(str(tmp_path_factory.mktemp("archive")), STUDIES)


@pytest.fixture(scope="module")
def undisturbed(archive: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return score(CONFIG, archive, Stub(), str(tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def told(uri: str) -> str:
    return "\n".join(scoring.status(uri))


def test_clients_take_parts_and_a_last_call_asks_nothing_and_commits(
    archive: Artifact, store: str, undisturbed: Artifact
) -> None:
    first, second, last = Stub(), Stub(), Stub()
    uri = score_part(CONFIG, archive, first, store, (0, 2))
    assert (len(first.asked), told(uri)[:19]) == (64, "64 of 120 studies (")
    assert score_part(CONFIG, archive, second, store, (1, 2)) == uri
    made = score(CONFIG, archive, last, store)
    assert (made.uri, made.digest, last.asked) == (uri, undisturbed.digest, [])
    assert not set(first.asked) & set(second.asked)
    assert told(uri) == "done: 120 scored, 0 failed of 120 studies"
    assert score_part(CONFIG, archive, last, store, (1, 2)) == uri
    assert last.connects == 0


def test_another_shell_sees_finished_ranges_and_segments_of_the_others(archive: Artifact, store: str) -> None:
    def script(stub: Stub, request: dict[str, Any]) -> Answer:
        if len(stub.asked) > 52:
            return status(401)
        return status(400) if len(stub.asked) % 10 == 0 else completion(request)

    with pytest.raises(EndpointGone):
        score(CONFIG.model_copy(update={"concurrency": 1}), archive, Stub(script), store)
    (uri,) = {place(store, "score", name.removeprefix("score-")) for name in _works(store)}
    assert told(uri).startswith("52 of 120 studies (43%), 5 failed, ")
    assert list(Ledger.of(uri).complete()) == [0]


def test_the_status_of_nothing_is_a_mistake(store: str) -> None:
    with pytest.raises(UserError, match="no scoring is known"):
        told(f"{store}/score/0123456789abcdef")


def test_tries_are_counted_over_restarts_also_where_nothing_is_finished(
    archive: Artifact, store: str
) -> None:
    """A study whose answers are always faulty gets its tries and no more, whatever is killed in between."""
    config = CONFIG.model_copy(update={"limit": 1, "segment_s": 0.05, "retries": 3})
    asked: Counter[str] = Counter()

    def script(stub: Stub, request: dict[str, Any]) -> Answer:
        asked[question(request)] += 1
        # The second request of each life ends it: the first one's fault is known to the ledger by then.
        return status(500) if seen(stub, request) <= 2 else status(401)

    lives = 0
    while True:
        lives += 1
        with pytest.raises(UserError) as ended:
            score(config, archive, Stub(script), store)
        if not isinstance(ended.value, EndpointGone):
            break
    assert "HTTP 500" in str(ended.value)
    faults = sum(asked.values()) - (lives - 1)  # the 401s are not its fault
    assert faults <= config.retries + 1 + lives - 1  # one that no segment had yet, for each life
    assert lives > 1


def test_a_server_of_ours_is_started_again_and_a_study_that_kills_it_alone_twice_is_left_out(
    archive: Artifact, store: str, undisturbed: Artifact
) -> None:
    """The local endpoint: nobody else restarts it."""
    poison = Stub()
    score(CONFIG.model_copy(update={"concurrency": 1, "limit": 32}), archive, poison, store + "-order")
    killer = poison.asked[20]

    def script(stub: Stub, request: dict[str, Any]) -> Answer:
        if question(request) == killer:
            stub.close()
            return None
        return completion(request)

    server = Stub(script, restarts=True)
    made = score(CONFIG.model_copy(update={"concurrency": 8}), archive, server, store)
    (failed,) = pq.read_table(made.path("failures.parquet")).to_pylist()
    assert (failed["reason"], failed["attempts"]) == (QUARANTINED, 2)
    assert made.manifest.counts == {"studies": STUDIES, "scored": STUDIES - 1, "failed": 1, "truncated": 0}
    assert server.connects - 1 in (3, 4)  # it died once or twice among others, and twice alone
    ours = {row["study_id"]: row["text"] for row in _predictions(made)}
    theirs = {row["study_id"]: row["text"] for row in _predictions(undisturbed)}
    assert ours == {name: text for name, text in theirs.items() if name != failed["study_id"]}


def test_a_price_tells_what_it_costs(
    archive: Artifact, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIG.model_copy(update={"price_per_hour": 36_000.0})
    score(config, archive, Stub(delay_s=0.01), store)
    line = capsys.readouterr().err.splitlines()[-1]
    seconds, cost = float(line.split(" in ")[1].split()[0]), float(line.split("cost ")[1].split()[0])
    assert cost == pytest.approx(10 * seconds, abs=2.0)


def test_finished_ledgers_leave_nothing_behind(archive: Artifact, store: str) -> None:
    score(CONFIG, archive, Stub(), store)
    assert not [name for name in storage.names(f"{store}/.work") if "ledger" in name]


def _works(store: str) -> set[str]:
    return {name.split("/")[0] for name in storage.names(f"{store}/.work") if "/ledger/" in name}


def _predictions(made: Artifact) -> list[dict[str, Any]]:
    return pq.read_table(made.path("predictions/000000.parquet")).to_pylist()
