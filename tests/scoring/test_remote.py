"""Who a model at an address is: by what it says, what the user says, its name; and the key it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from unirg import prompt_recipes, prompts
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.errors import Unavailable, UserError
from unirg.scoring.archive import MODEL, NOTICE, Endpoint, ScoreConfig, score
from unirg.scoring.copy_prior import CopyPrior, _Handler
from unirg.scoring.questions import Asking, body, questions, ranges
from unirg.scoring.remote import KEY_VARIABLE, RemoteEndpoint, endpoint_of, key_for

SECRET = "sk-secret-never-shown"


@contextmanager
def server(
    header: str = "", fingerprint: str | None = None, status: int = 200, refuses: str = ""
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server's address, and what was asked of it: path, body, authorization."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({})

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, content: dict[str, Any]) -> None:
            asked.append({"path": self.path, "key": self.headers.get("Authorization"), **content})
            body = json.dumps({"data": [], "system_fingerprint": fingerprint}).encode()
            self.send_response(400 if refuses and refuses in content else status)
            if header:
                self.send_header("X-Model-Digest", header)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_address[1]}/v1/", asked
        made.shutdown()


def test_a_digest_of_the_server_is_the_models() -> None:
    with server(header="d" * 64, fingerprint="fp_1") as (url, asked):
        endpoint: Endpoint = RemoteEndpoint(url, "m", environ={})
        assert endpoint.model_digest == endpoint.model_digest == "d" * 64
        assert [one["path"] for one in asked] == ["/v1/models"]
        assert RemoteEndpoint(url, "m", "d" * 64, environ={}).basis == "X-Model-Digest of the server"
        with pytest.raises(UserError, match="serves model dddddddddddddddd, not eeeeeeeeeeeeeeee"):
            _ = RemoteEndpoint(url, "m", "e" * 64, environ={}).model_digest


def test_what_the_user_states_comes_next_and_costs_no_completion() -> None:
    with server(fingerprint="fp_1") as (url, asked):
        endpoint = RemoteEndpoint(url, "m", "sha256:abc", environ={})
        assert (endpoint.model_digest, endpoint.basis) == ("sha256:abc", "stated by the user")
        assert len(asked) == 1


def test_a_fingerprint_tells_configurations_apart() -> None:
    with server(fingerprint="fp_1") as (url, _), server(fingerprint="fp_2") as (other, _):
        one, two = RemoteEndpoint(url, "m", environ={}), RemoteEndpoint(other, "m", environ={})
        assert one.model_digest != two.model_digest
        assert "system_fingerprint" in one.basis


def test_a_server_that_says_nothing_is_known_by_name_and_address() -> None:
    with server() as (url, _):
        one = RemoteEndpoint(url, "m", environ={})
        assert one.model_digest != RemoteEndpoint(url, "n", environ={}).model_digest
        assert one.model_digest == RemoteEndpoint(url.rstrip("/"), "m", environ={}).model_digest
        assert len(one.model_digest) == 64
        assert "name and address alone" in one.basis


def test_a_reasoning_model_is_asked_again_in_its_own_words() -> None:
    with server(fingerprint="fp_1", refuses="max_tokens") as (url, asked):
        assert "system_fingerprint" in RemoteEndpoint(url, "m", environ={}).basis
        assert "max_completion_tokens" in asked[-1]


def test_the_key_comes_from_the_environment_and_is_never_shown() -> None:
    with server() as (url, asked):
        endpoint = RemoteEndpoint(url, "m", environ={KEY_VARIABLE: SECRET, "OPENAI_API_KEY": "another"})
        _ = endpoint.model_digest
        assert {one["key"] for one in asked} == {f"Bearer {SECRET}"}
        assert SECRET not in repr(endpoint) + str(endpoint) + endpoint.basis
        assert RemoteEndpoint(url, "m", environ={"OPENAI_API_KEY": "another"}).headers == {}
    with server(status=401) as (url, _), pytest.raises(UserError, match=f"401.*{KEY_VARIABLE}") as refused:
        _ = RemoteEndpoint(url, "m", environ={KEY_VARIABLE: SECRET}).model_digest
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "model", "stated", "environ", "words"),
    [
        ("ftp://host/v1", "m", "", {}, "not an address"),
        ("host:8000", "m", "", {}, "not an address"),
        ("http://[::1", "m", "", {}, "not an address"),
        ("https://user:secret@host/v1", "m", "", {}, "credentials"),
        ("https://host/v1?key=secret", "m", "", {}, "credentials"),
        ("https://host/v1", "", "", {}, "--model"),
        ("https://host/v1", "m", "a b", {}, "--model-digest"),
        ("http://host/v1", "m", "", {KEY_VARIABLE: SECRET}, "unencrypted"),
    ],
)
def test_an_address_that_cannot_be_right_is_refused_without_its_secret(
    url: str, model: str, stated: str, environ: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        RemoteEndpoint(url, model, stated, environ)
    assert "secret" not in str(refused.value)


def test_an_address_without_a_server_says_so_and_may_be_there_later() -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        _ = RemoteEndpoint("http://127.0.0.1:9/v1", "m", environ={}).model_digest


def test_copy_prior_answers_with_what_it_is_told_and_dies_with_its_context() -> None:
    endpoint = endpoint_of("copy-prior")
    assert isinstance(endpoint, CopyPrior)
    with endpoint.connect() as url, httpx.Client() as http:

        def told(*parts: dict[str, Any], **body: Any) -> httpx.Response:
            asked = {"messages": [{"role": "user", "content": list(parts)}]} | body
            return http.post(f"{url}/chat/completions", json=asked)

        answer = told({"type": "text", "text": "Findings: clear."})
        assert answer.json()["choices"][0]["message"]["content"] == "Findings: clear."
        assert answer.headers["X-Model-Digest"] == endpoint.model_digest
        assert told().json()["choices"][0]["message"]["content"] == ""
        assert told(messages=[]).status_code == 400
        assert told(filler="x" * 2**20).status_code == 413
        assert RemoteEndpoint(url, "copy-prior", environ={}).model_digest == endpoint.model_digest
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")


def test_the_copy_prior_recipe_brings_the_prior_report_through_the_protocol(cohort: Artifact) -> None:
    opened, recipe = Cohort.open(cohort), prompt_recipes.load("copy_prior")
    with CopyPrior().connect() as url, httpx.Client() as http:
        (whole,) = ranges(opened, ("test", "zero_shot"), None, 100)
        asked = list(questions(opened, whole, frozenset(), Asking(recipe)))
        assert len(asked) == len(opened.studies())
        for question in asked:
            prior = opened.prior(opened[question.study.study_id], images=False)
            assert question.with_prior == (prior is not None)
            request = body(question, recipe.sampling.parameters(512, 0.0, 0))
            answer = http.post(f"{url}/chat/completions", content=request).json()["choices"][0]["message"]
            assert recipe.answer.read(answer["content"]) == (prompts.report(prior) if prior else "")


def test_the_key_of_a_run_is_guarded_as_the_endpoints_is() -> None:
    with pytest.raises(UserError, match="unencrypted") as refused:
        key_for("http://elsewhere/v1", {KEY_VARIABLE: SECRET})
    assert SECRET not in str(refused.value)
    for url in ("https://elsewhere/v1", "http://127.0.0.1:8080/v1", "http://[::1]:8080/v1"):
        assert key_for(url, {KEY_VARIABLE: SECRET}) == SECRET
    assert key_for("http://elsewhere/v1", {}) == ""


def test_a_run_sends_the_key_and_a_baseline_is_scored_like_a_model(
    cohort: Artifact, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    keys: list[str] = []
    heard = _Handler.do_POST

    def hears(self: _Handler) -> None:
        keys.append(self.headers.get("Authorization", ""))
        heard(self)

    monkeypatch.setattr(_Handler, "do_POST", hears)
    made = score(ScoreConfig(prompt="copy_prior"), cohort, CopyPrior(), store)
    assert made.manifest.counts == {"studies": 24, "scored": 8, "failed": 16, "truncated": 0}
    assert set(keys) == {f"Bearer {SECRET}"}
    told = json.loads(made.path(MODEL).read_bytes())
    assert (told["name"], told["basis"]) == ("copy-prior", "the program's own version")
    assert told["digest"] == CopyPrior.model_digest
    assert SECRET not in made.manifest.model_dump_json() + json.dumps(told)


def test_every_prediction_and_the_failures_say_what_they_are_for(cohort: Artifact, store: str) -> None:
    made = score(ScoreConfig(prompt="copy_prior"), cohort, CopyPrior(), store)
    written = pq.read_table(made.path("predictions/000000.parquet"))
    assert set(written["notice"].to_pylist()) == {NOTICE} == {"research use, not for diagnosis"}
    for name in ("predictions/000000.parquet", "failures.parquet"):
        assert pq.read_schema(made.path(name)).metadata[b"notice"] == NOTICE.encode()
