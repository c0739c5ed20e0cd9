"""The judge's endpoint: one question at a time to an OpenAI-compatible server, Azure's too, within a budget.

A question is asked again after HTTP 408, 409, 429, a 5xx, a time-out or a lost connection, up to the number
of retries: 0.5 s later, doubling to 8 s, less up to a half by chance; or when the server's Retry-After says
(up to two minutes; one that asks for longer is not waited for), plus up to a quarter by chance, so that the
requests it held back do not all return at once. The openai library retries too, but without that spread and
unseen by a budget, so its retries are off.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from unirg.errors import Unavailable, UserError

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError, AsyncOpenAI

LONGEST_WAIT_S = 120.0
SETTINGS = ("temperature", "top_p", "max_completion_tokens", "response_format")
"""What a request sets beside the messages, and a model may refuse."""

_logger = logging.getLogger("unirg.metrics")
_chance = random.Random()  # of its own, so that the seeded generator of a training run is left alone


@dataclass(frozen=True)
class Budget:
    """What a judge may spend in its life. Where a limit is reached no further call starts.

    Tokens and money are known once an answer is there, so the calls under way then (at most `concurrency`)
    come on top; the limit of calls is exact.
    """

    calls: int | None = None
    """Requests, retries and second questions included; None, here and below: no limit."""
    tokens: int | None = None
    """Input and output tokens together, as the endpoint reports them."""
    money: float | None = None
    """In the currency of the prices; discounts, such as on a cached prompt, are not counted."""
    input_price: float | None = None
    """Price of a million input tokens."""
    output_price: float | None = None
    """Price of a million output tokens."""

    def __post_init__(self) -> None:
        for name in ("calls", "tokens", "money"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise UserError(
                    f"a judge's budget of {limit} {name} allows nothing: raise it, or leave it out"
                )
        prices = (self.input_price, self.output_price)
        if any(price is not None and not price >= 0 for price in prices):
            raise UserError(f"a judge's prices cannot be {prices[0]} and {prices[1]}: give them from 0 on")
        if self.money is not None and None in prices:
            raise UserError("a judge's budget in money needs both prices: set input_price and output_price")

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """What tokens cost; 0 where no price is given."""
        return ((self.input_price or 0) * input_tokens + (self.output_price or 0) * output_tokens) / 1e6

    def exhausted(self, spent: Spent) -> str | None:
        """Which limit is reached, as a reason for a missing verdict."""
        if self.calls is not None and spent.calls >= self.calls:
            return f"the budget of {self.calls} calls is spent"
        if self.tokens is not None and spent.tokens >= self.tokens:
            return f"the budget of {self.tokens} tokens is spent"
        if self.money is not None and spent.money >= self.money:
            return f"the budget of {self.money:g} in money is spent"
        return None


@dataclass(frozen=True)
class Spent:
    """What a judge has spent so far."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    money: float = 0.0
    """0 where no price is given."""
    unmetered: int = 0
    """Answers whose tokens the endpoint did not report; they are missing above."""

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __str__(self) -> str:
        text = f"{self.calls} calls, {self.input_tokens} input and {self.output_tokens} output tokens"
        if self.unmetered:
            text += f" (not reported for {self.unmetered} answers)"
        return text + (f", {self.money:.4g} in money" if self.money else "")


class Unanswered(Exception):
    """The endpoint gave no answer to a question; the reason holds nothing of it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


_Tokens = Annotated[int, Field(ge=0)]


class _Usage(BaseModel):
    prompt_tokens: _Tokens
    completion_tokens: _Tokens


class _Metered(BaseModel):
    usage: _Usage


class Endpoint:
    """Where the judge's model is, and what has been spent there."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str,
        api_version: str | None,
        retries: int,
        timeout: float,
        budget: Budget,
    ) -> None:
        """
        Args:
            base_url: up to and including `/v1`; with an `api_version` the Azure resource alone
                (https://NAME.openai.azure.com), below which the client puts the deployment's path itself.
            model: the model's name; on Azure the deployment's.
            api_version: of Azure's API, from 2024-10-21 on (an older one knows no schema); None: not Azure,
                or Azure's newer endpoint, whose `base_url` ends in `/openai/v1`.
            timeout: seconds for one attempt.
        """
        self.base_url, self.model, self.spent = base_url, model, Spent()
        self._api_key, self._api_version = api_key, api_version
        self._retries, self._timeout, self._budget = retries, timeout, budget
        self._told = False

    def connect(self) -> AsyncOpenAI:
        """A client for the running event loop; to be closed by the caller."""
        # The library looks into whatever `httpx` is loaded: half of it, where another thread just imports it.
        import httpx  # noqa: F401
        from openai import AsyncAzureOpenAI, AsyncOpenAI

        if self._api_version:
            return AsyncAzureOpenAI(
                azure_endpoint=self.base_url,
                api_version=self._api_version,
                api_key=self._api_key,
                timeout=self._timeout,
                max_retries=0,
            )
        return AsyncOpenAI(
            base_url=self.base_url, api_key=self._api_key, timeout=self._timeout, max_retries=0
        )

    async def ask(self, client: AsyncOpenAI, **request: Any) -> bytes:
        """The body of the chat completion that the request gets, unchecked.

        Raises:
            Unanswered: this question gets no answer, or the budget is spent.
            UserError: none would: the endpoint cannot be reached; it refuses the key, the model, the path
                or a setting; it reports no tokens where the budget limits them.
        """
        from openai import APIConnectionError, APIStatusError

        for attempt in count():
            self._begin_call()
            try:
                # The raw body: the library passes on whatever JSON it gets, unchecked against its own types.
                response = await client.chat.completions.with_raw_response.create(model=self.model, **request)
            except (APIConnectionError, APIStatusError) as error:
                failure = error
            else:
                self._meter(response.content)
                return response.content
            seconds = pause(failure, attempt)
            if seconds is None or attempt >= self._retries:
                break
            await asyncio.sleep(seconds)
        # Out of the handler, so that the library's error, which may quote the report, is not its context.
        raise self._failed(failure)

    def _begin_call(self) -> None:
        if reason := self._budget.exhausted(self.spent):
            if not self._told:
                self._told = True
                _logger.warning("judge %s: %s (%s); nothing more is asked", self.model, reason, self.spent)
            raise Unanswered(reason)
        self.spent = replace(self.spent, calls=self.spent.calls + 1)

    def _meter(self, body: bytes) -> None:
        try:
            usage = _Metered.model_validate_json(body).usage
        except ValidationError:
            self.spent = replace(self.spent, unmetered=self.spent.unmetered + 1)
            if self._budget.tokens is None and self._budget.money is None:
                return
            raise UserError(
                f"the judge at {self.base_url} does not report the tokens it used, so a budget of tokens or "
                "money cannot be kept: limit the calls instead"
            ) from None
        self.spent = replace(
            self.spent,
            input_tokens=self.spent.input_tokens + usage.prompt_tokens,
            output_tokens=self.spent.output_tokens + usage.completion_tokens,
            money=self.spent.money + self._budget.cost(usage.prompt_tokens, usage.completion_tokens),
        )

    def _failed(self, error: APIConnectionError | APIStatusError) -> Exception:
        """What a failure means: UserError where it would meet every question. Nothing quotes the server."""
        from openai import APIStatusError, APITimeoutError

        where = f"the judge at {self.base_url}"
        if isinstance(error, APITimeoutError):
            return Unanswered(f"no answer within {self._timeout:g} s")
        if not isinstance(error, APIStatusError):
            return Unavailable(f"{where} cannot be reached: start it, or correct its URL")
        if error.status_code in (401, 402, 403, 404):
            check = "its URL, the model's name, the API key and its credit"
            if self._api_version:
                check = "the resource's URL, the deployment's name, the API key and the API version"
            return UserError(
                f"{where} answers HTTP {error.status_code} for model {self.model}: check {check}"
            )
        for setting in SETTINGS:
            if error.status_code in (400, 422) and str(error.param).startswith(setting):
                remedy = "set it to None" if setting in ("temperature", "top_p") else "choose another model"
                return UserError(f"{where} refuses {setting} for model {self.model}: {remedy}")
        return Unanswered(f"HTTP {error.status_code}")


def pause(error: APIConnectionError | APIStatusError, attempt: int) -> float | None:
    """Seconds to wait after the failed attempt (0 is the first); None where another one is of no use."""
    from openai import APIStatusError

    if isinstance(error, APIStatusError):
        headers = error.response.headers
        lasting = error.status_code < 500 and error.status_code not in (408, 409, 429)
        asked = retry_after(headers) or 0.0
        if lasting or headers.get("x-should-retry") == "false" or asked > LONGEST_WAIT_S:
            return None
        if asked > 0:
            return asked * _chance.uniform(1, 1.25)
    return min(0.5 * 2 ** min(attempt, 4), 8.0) * _chance.uniform(0.5, 1)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms` (Azure), or `retry-after`, seconds or a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(KeyError, ValueError):
            return float(headers[name]) * unit
    with suppress(KeyError, ValueError):
        return parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time()
    return None
