"""Questions about report text to a language model that answers with JSON under a schema, many at once.

Two rules hold throughout. A report is data: it reaches the model as a string of one JSON object in the last
user message, never in the instruction. And a question without an answer that fits the schema exactly has a
reason instead of an answer; nothing is guessed from a broken one. No text is logged or quoted in an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from unirg.metrics.judge_endpoint import Budget, Endpoint, Spent, Unanswered

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletionMessageParam
    from openai.types.shared_params import ResponseFormatJSONSchema

REMINDER = (
    "\nYour last answer was not the JSON object of the schema. Answer with that object and nothing else."
)
"""Ends the instruction of the second question, after an answer that broke the schema."""
BROKEN = "the answer broke the schema twice"

Answer = TypeVar("Answer", bound=BaseModel)
Question = TypeVar("Question")
Result = TypeVar("Result")


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]


def as_data(texts: Mapping[str, str]) -> str:
    """A user message: the texts as strings of one JSON object, from which they parse back exactly.

    Escaped, as JSON allows for any character: what opens a chat template's marker ("<" and "["), since some
    servers read `<|im_start|>` as one even inside a message; and all that is not seen, such as zero-width and
    direction marks, control characters and lone surrogates.
    """
    message = json.dumps(dict(texts), ensure_ascii=False)
    return "".join(_escaped(c) if c in "<[" or unicodedata.category(c) in _UNSEEN else c for c in message)


_UNSEEN = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def response_format(name: str, schema: type[BaseModel]) -> ResponseFormatJSONSchema:
    """What asks for an answer under the schema of `schema`."""
    return {
        "type": "json_schema",
        "json_schema": {"name": name, "strict": True, "schema": schema.model_json_schema()},
    }


class Questioner:
    """A client of any OpenAI-compatible endpoint, Azure's too, that answers under a JSON schema."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str = "none",
        concurrency: int = 16,
        retries: int = 5,
        timeout: float = 120.0,
        api_version: str | None = None,
        budget: Budget | None = None,
        temperature: float | None = 0.0,
        top_p: float | None = 0.9,
        max_tokens: int = 1024,
    ) -> None:
        """
        Args:
            base_url: the endpoint up to and including `/v1`; with `api_version`, the Azure resource
                (https://NAME.openai.azure.com).
            model: the model's name; on Azure the deployment's.
            concurrency: requests under way at once.
            retries: further attempts after 429, a 5xx or a lost connection, with exponential backoff
                (0.5 s doubling to 8 s, jittered) or the server's Retry-After of up to two minutes.
            timeout: seconds for one attempt.
            api_version: of Azure's API; None for every other endpoint.
            budget: over all calls of this object; None: no limit.
            temperature: None leaves it out, for a model that refuses it, as models that reason do.
            top_p: None leaves it out.
            max_tokens: of an answer. One takes at most about 150; a model that reasons counts its thoughts
                too.
        """
        self.base_url, self.model = base_url, model
        self._concurrency = concurrency
        self._endpoint = Endpoint(base_url, model, api_key, api_version, retries, timeout, budget or Budget())
        sampling = {"temperature": temperature, "top_p": top_p, "max_completion_tokens": max_tokens}
        self._sampling: dict[str, Any] = {k: value for k, value in sampling.items() if value is not None}

    @property
    def spent(self) -> Spent:
        """Calls, tokens and money since this object was made."""
        return self._endpoint.spent

    def _identity(
        self, conversations: Sequence[Sequence[ChatCompletionMessageParam]], answer: ResponseFormatJSONSchema
    ) -> str:
        """Digest of what decides an answer besides the texts, given how some text is asked about."""
        parts = [self.model, conversations, answer, self._sampling]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    async def _each(
        self,
        questions: Sequence[Question],
        ask: Callable[[AsyncOpenAI, Question], Awaitable[Result]],
    ) -> list[Result]:
        """What `ask` gives for each question, in their order; equal questions are asked once.

        Raises:
            UserError: the endpoint cannot be reached, refuses the key, the model, the path or a setting, or
                reports no tokens to hold the budget by.
        """
        results: dict[Question, Result] = {}
        waiting = iter(dict.fromkeys(questions))

        async def work(client: AsyncOpenAI) -> None:
            for question in waiting:  # one iterator for all workers: each question is taken once
                results[question] = await ask(client, question)

        client = self._endpoint.connect()
        try:
            async with client, asyncio.TaskGroup() as workers:
                for _ in range(min(self._concurrency, len(questions))):
                    workers.create_task(work(client))
        except ExceptionGroup as group:  # the first failure has cancelled the other workers
            raise group.exceptions[0] from None
        return [results[question] for question in questions]

    async def _answer(
        self,
        client: AsyncOpenAI,
        conversations: Iterable[Sequence[ChatCompletionMessageParam]],
        schema: type[Answer],
        answer: ResponseFormatJSONSchema,
    ) -> Answer | str:
        """The first answer that fits the schema, asking in one way after the other; or why there is none."""
        for messages in conversations:
            try:
                body = await self._endpoint.ask(
                    client, messages=messages, response_format=answer, **self._sampling
                )
                return schema.model_validate_json(
                    _Completion.model_validate_json(body).choices[0].message.content
                )
            except Unanswered as none:
                return none.reason
            except ValidationError:
                continue
        return BROKEN
