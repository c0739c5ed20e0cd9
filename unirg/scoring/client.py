"""One request to an OpenAI-compatible endpoint, and what its answer means for the study and for the others.

- `Unavailable`: no connection, 408, 425, 429, 502, 503, 504. The endpoint's state, never the study's fault.
- `Faulty`: 500, no JSON, no completion, no answer in time. It may be the study's fault: after a few, it is.
- `Broken`: the connection broke after the request was sent. The server may have died of it.
- `Refused`: 400, 413, 422, an empty completion. Final.
- `EndpointGone`: 401, 403, 404, another model than ours. Nobody gets an answer.

No reason repeats what an endpoint wrote: it may quote the request.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType

import aiohttp

from unirg.errors import UserError

REFUSED = (400, 413, 422)
EVERYBODY = {401: "wants credentials", 403: "refuses access", 404: "has no such model or address"}
EMPTY = "empty completion"
DIGEST = "X-Model-Digest"
"""Header of an answer: which model it is of."""
UNAVAILABLE = (408, 425, 429, 502, 503, 504)
LONGEST_RETRY_AFTER_S = 300.0
LONGEST_ANSWER = 2**22
"""Bytes; a report has a few thousand."""
_ALIVE_S = 5.0
_KEEP_S = 3.0
"""How long an idle connection is used again. Servers close theirs after some seconds (uvicorn's, and so
vLLM's, after 5), and a request that meets the end of one looks like a death."""
_CODE = re.compile(r"[a-z_]{1,40}")


class Answerless(Exception):
    """A request without a completion; `why` is a short reason of ours."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Unavailable(Answerless):
    """Ask again, not before `wait_s` seconds."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class Faulty(Answerless):
    """Ask again, a few times."""


class Broken(Answerless):
    """The connection broke with the request under way."""


class Refused(Answerless):
    """There is no use in asking again."""


class EndpointGone(UserError):
    """The endpoint answers nobody; finished work is kept."""


@dataclass(frozen=True)
class Completion:
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    latency_s: float


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
        key: str = "",
    ) -> None:
        """
        Args:
            key: sent as a bearer token where it is not empty.
        """
        self.base_url, self.model, self.model_digest = base_url.rstrip("/"), model, model_digest
        self._name = json.dumps(model).encode()
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._connections, self._timeout_s = connections, timeout_s

    async def __aenter__(self) -> ChatClient:
        # aiohttp, not httpx: httpcore's pool looks through all connections for each request, which costs
        # 15 ms of CPU a study with 64 of them. It heeds no proxy of the environment: that must not see images
        # bound for this machine.
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections + 1, keepalive_timeout=_KEEP_S),
            timeout=aiohttp.ClientTimeout(self._timeout_s, connect=min(10.0, self._timeout_s)),
            headers=self._headers,
            raise_for_status=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def alive(self) -> bool:
        """Whether a server answers there at all."""
        try:
            timeout = aiohttp.ClientTimeout(_ALIVE_S)
            async with self._http.get(f"{self.base_url}/models", timeout=timeout) as answer:
                # 502 to 504 are a gateway's, for a server that is not there.
                return answer.status not in (502, 503, 504)
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def ask(self, body: bytes) -> Completion:
        """Send a request once; `body` is a JSON object without the model's name.

        Raises:
            Answerless: in one of its kinds.
            EndpointGone: nobody gets an answer.
        """
        started = time.monotonic()
        named = b'{"model":%s,%s' % (self._name, body[1:])
        try:
            async with self._http.post(f"{self.base_url}/chat/completions", data=named) as answer:
                content = await _content(answer)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unavailable(type(error).__name__) from None
        except TimeoutError:
            raise Faulty("no answer in time") from None
        except aiohttp.ClientError:
            raise Broken("the connection broke") from None
        if answer.status != 200:
            raise self._problem(answer, content)
        return self._read(answer, content, time.monotonic() - started)

    def _problem(self, answer: aiohttp.ClientResponse, content: bytes) -> Exception:
        status = answer.status
        if status in UNAVAILABLE:
            return Unavailable(f"HTTP {status}", _retry_after(answer))
        if status in REFUSED:
            return Refused(f"refused: HTTP {status}{_code(content)}")
        if status in EVERYBODY:
            return EndpointGone(
                f"the endpoint at {self.base_url} {EVERYBODY[status]} (HTTP {status}, model {self.model}): "
                "correct its address, model name or credentials"
            )
        return Faulty(f"HTTP {status}")

    def _read(self, answer: aiohttp.ClientResponse, content: bytes, latency_s: float) -> Completion:
        if not answer.headers.get("Content-Type", "application/json").startswith("application/json"):
            raise Faulty("an answer that is no JSON")
        try:
            told = json.loads(content)
            choice, usage = told["choices"][0], told["usage"]
            completion = Completion(
                choice["message"]["content"] or "",
                choice["finish_reason"] or "",
                int(usage["prompt_tokens"]),
                int(usage["completion_tokens"]),
                latency_s,
            )
            empty = not completion.text.strip()
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Faulty("an answer that is no completion") from None
        # vLLM has no header of ours; where it is there, it must be the model we account for.
        digest = answer.headers.get(DIGEST, self.model_digest)
        if digest != self.model_digest:
            raise EndpointGone(
                f"the endpoint at {self.base_url} serves model {digest[:12]}, not {self.model_digest[:12]}"
            )
        if empty:
            raise Refused(EMPTY)
        return completion


async def _content(answer: aiohttp.ClientResponse) -> bytes:
    """The body, and no more of it than an answer may have: what is longer is cut, and so is no JSON."""
    try:
        return await answer.content.readexactly(LONGEST_ANSWER)
    except asyncio.IncompleteReadError as whole:
        return whole.partial


def _retry_after(answer: aiohttp.ClientResponse) -> float:
    """Seconds of a `Retry-After` header, which may be a date; 0 where it says nothing."""
    value = answer.headers.get("Retry-After", "0")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_S) if seconds == seconds else 0.0


def _code(content: bytes) -> str:
    """The protocol's error code, where it is one: it is a word of the server's, not of the request."""
    try:
        code = json.loads(content)["error"]["code"]
    except (ValueError, LookupError, TypeError):
        return ""
    return f" {code}" if isinstance(code, str) and _CODE.fullmatch(code) else ""
