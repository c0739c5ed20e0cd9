"""An async client of OpenAI chat completions that tells a failing study from a failing endpoint.

- The endpoint is unavailable (no connection, 429, 502, 503, 504): wait as long as it says, or with
  exponential backoff and full jitter, and ask again; it is never the study's fault. Where no request at
  all succeeds for `patience_s`, the endpoint is gone, and that ends the run.
- The answer is faulty (500, no JSON, no completion, time-out): ask again, `retries` times, then the study
  has failed - unless the endpoint does not even list its models, for then it is gone.
- The request is refused (400, 413, 422): the study has failed at once.
- Everybody is refused (401, 403, 404): the user's mistake.

No reason repeats what an endpoint wrote: it may quote the request.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from unirg.errors import UserError

REFUSED = (400, 413, 422)
EVERYBODY = {401: "wants credentials", 403: "refuses access", 404: "has no such model or address"}
EMPTY = "empty completion"
UNAVAILABLE = (408, 425, 429, 502, 503, 504)
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 15.0
_LONGEST_RETRY_AFTER_S = 300.0
_CODE = re.compile(r"[a-z_]{1,40}")


class EndpointUnavailable(UserError):
    """The endpoint is gone or refuses everybody; finished work is kept."""


class StudyFailed(Exception):
    """This study gets no completion: a short reason of ours, and how often it was answered."""

    def __init__(self, reason: str, attempts: int) -> None:
        super().__init__(reason)
        self.reason, self.attempts = reason, attempts


@dataclass(frozen=True)
class Completion:
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    """Of the attempt that succeeded."""


class _Unavailable(Exception):
    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.why, self.wait_s = why, wait_s


class _Faulty(Exception):
    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class ChatClient:
    """One model behind one base URL, such as `http://127.0.0.1:8080/openai/v1`; an async context."""

    def __init__(
        self,
        base_url: str,
        model: str,
        model_digest: str,
        *,
        connections: int,
        timeout_s: float,
        retries: int,
        patience_s: float,
    ) -> None:
        self.base_url, self.model, self.model_digest = base_url.rstrip("/"), model, model_digest
        self.retries, self.patience_s = retries, patience_s
        # trust_env: a proxy of the environment must not see images bound for this machine.
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s), pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=False,
        )
        self._jitter = random.Random()
        self._last_success = time.monotonic()

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def complete(self, messages: list[dict[str, Any]], **parameters: Any) -> Completion:
        """Ask for one completion of `messages`; `parameters` are the protocol's (max_tokens, seed, ...).

        Raises:
            StudyFailed: these messages get none.
            EndpointUnavailable: nobody gets one.
        """
        body = json.dumps({"model": self.model, "messages": messages} | parameters).encode()
        began = time.monotonic()
        answered = waited = 0
        while True:
            try:
                completion = await self._attempt(body)
            except _Unavailable as error:
                since = max(began, self._last_success)
                if time.monotonic() - since > self.patience_s:
                    raise self._gone(error.why) from None
                await asyncio.sleep(error.wait_s + self._backoff(waited))
                waited += 1
            except _Faulty as error:
                answered += 1
                if answered > self.retries:
                    await self._blame_endpoint(error.why)
                    raise StudyFailed(error.why, answered) from None
                await asyncio.sleep(self._backoff(answered - 1))
            except StudyFailed as error:
                raise StudyFailed(error.reason, answered + 1) from None
            else:
                self._last_success = time.monotonic()
                return completion

    def _backoff(self, attempt: int) -> float:
        return self._jitter.uniform(0, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(attempt, 10)))

    def _gone(self, why: str) -> EndpointUnavailable:
        return EndpointUnavailable(
            f"the endpoint at {self.base_url} has completed nothing for {self.patience_s:g} s ({why}): "
            "look after it and run the same command again; finished studies are kept"
        )

    async def _blame_endpoint(self, why: str) -> None:
        """Raise if the endpoint answers nothing at all, for then the study is not at fault."""
        try:
            await self._http.get(f"{self.base_url}/models", timeout=10.0)
        except httpx.HTTPError:
            raise self._gone(why) from None

    async def _attempt(self, body: bytes) -> Completion:
        started = time.monotonic()
        try:
            answer = await self._http.post(
                f"{self.base_url}/chat/completions",
                content=body,
                headers={"Content-Type": "application/json"},
            )
        except (httpx.ReadTimeout, httpx.WriteTimeout):
            raise _Faulty("no answer in time") from None
        except httpx.HTTPError as error:
            raise _Unavailable(type(error).__name__) from None
        if answer.status_code != 200:
            raise self._problem(answer)
        return self._read(answer, time.monotonic() - started)

    def _problem(self, answer: httpx.Response) -> Exception:
        status = answer.status_code
        if status in UNAVAILABLE:
            return _Unavailable(f"HTTP {status}", _retry_after(answer))
        if status in REFUSED:
            return StudyFailed(f"refused: HTTP {status}{_code(answer)}", 1)
        if status in EVERYBODY:
            return EndpointUnavailable(
                f"the endpoint at {self.base_url} {EVERYBODY[status]} (HTTP {status}, model {self.model}): "
                "correct its address, model name or credentials"
            )
        return _Faulty(f"HTTP {status}")

    def _read(self, answer: httpx.Response, latency_s: float) -> Completion:
        try:
            content = answer.json()
            choice, usage = content["choices"][0], content["usage"]
            completion = Completion(
                choice["message"]["content"] or "",
                choice["finish_reason"] or "",
                int(usage["prompt_tokens"]),
                int(usage["completion_tokens"]),
                latency_s,
            )
            empty = not completion.text.strip()
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _Faulty("an answer that is no completion") from None
        # vLLM has no header of ours; where it is there, it must be the model we account for.
        digest = answer.headers.get("X-Model-Digest", self.model_digest)
        if digest != self.model_digest:
            raise EndpointUnavailable(
                f"the endpoint at {self.base_url} serves model {digest[:12]}, not {self.model_digest[:12]}"
            )
        if empty:
            raise StudyFailed(EMPTY, 1)
        return completion


def _retry_after(answer: httpx.Response) -> float:
    """Seconds of a `Retry-After` header; its form as a date is left to our own backoff."""
    try:
        return min(max(0.0, float(answer.headers.get("Retry-After", "0"))), _LONGEST_RETRY_AFTER_S)
    except ValueError:
        return 0.0


def _code(answer: httpx.Response) -> str:
    """The protocol's error code, where it is one: it is a word of the server's, not of the request."""
    try:
        code = answer.json()["error"]["code"]
    except (ValueError, LookupError, TypeError):
        return ""
    return f" {code}" if isinstance(code, str) and _CODE.fullmatch(code) else ""
