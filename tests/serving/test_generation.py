from __future__ import annotations

import json
import random

import pytest
import torch

from tests.serving.requests import chat
from unirg.serving import generation
from unirg.serving.chat import Refused, parse
from unirg.serving.generation import Completion, Policy, Prompt


def prompt(
    policy: Policy, text: str = "Write.", pictures: tuple[int, ...] = (1,), **parameters: object
) -> Prompt:
    return policy.prompt(parse(json.dumps(chat(text, pictures, **parameters)).encode()))


@pytest.fixture(scope="module")
def prompts(policy: Policy) -> list[Prompt]:
    """Prompts of unequal length with no, one and two images."""
    return [
        prompt(policy, "The heart is enlarged . " * (1 + number), tuple(range(number, number + number % 3)))
        for number in range(12)
    ]


@pytest.fixture(scope="module")
def alone(policy: Policy, prompts: list[Prompt]) -> list[Completion]:
    return [policy.complete([one])[0] for one in prompts]


def test_the_toy_policy_says_something_else_of_another_picture(policy: Policy) -> None:
    texts = {policy.complete([prompt(policy, pictures=(seed,))])[0].text for seed in range(6)}
    assert len(texts) > 3


@pytest.mark.parametrize("size", [2, 5, 12])
def test_a_completion_does_not_depend_on_the_batch(
    policy: Policy, prompts: list[Prompt], alone: list[Completion], size: int
) -> None:
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    assert [done for batch in batches for done in policy.complete(batch)] == alone
    backwards = policy.complete(prompts[::-1])
    assert backwards[::-1] == alone


def test_a_seeded_sample_does_not_depend_on_the_batch(policy: Policy, prompts: list[Prompt]) -> None:
    drawn = [prompt(policy, pictures=(3,), temperature=1.0, seed=seed) for seed in (7, 7, 8)]
    first, again, other = (policy.complete([one])[0] for one in drawn)
    assert first == again != other
    mixed = policy.complete([*prompts[:5], drawn[0], *prompts[5:], drawn[2]])
    assert [mixed[5], mixed[13]] == [first, other]


@pytest.fixture(scope="module")
def medley(policy: Policy) -> tuple[list[Prompt], list[Completion]]:
    """Prompts of unequal lengths, images, limits, temperatures and seeds; what each gets alone."""
    made = [
        prompt(
            policy,
            "Lungs are clear . " * (1 + 3 * number % 11),
            tuple(range(number, number + number % 4)),
            temperature=(0, 0.3, 1.0, 2.0)[number * 7 % 4],
            seed=number % 5,
            max_tokens=4 + number * 5 % 23,
        )
        for number in range(16)
    ]
    return made, [policy.complete([one])[0] for one in made]


@pytest.mark.parametrize("seed", range(4))
def test_token_for_token_nothing_depends_on_who_else_is_in_the_batch(
    policy: Policy, medley: tuple[list[Prompt], list[Completion]], seed: int
) -> None:
    chance, order = random.Random(seed), list(range(16))
    chance.shuffle(order)
    size = chance.choice([2, 3, 7, 16])
    together: dict[int, Completion] = {}
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        together |= dict(zip(rows, policy.complete([medley[0][row] for row in rows]), strict=True))
    assert {row: done.tokens for row, done in together.items()} == {
        row: done.tokens for row, done in enumerate(medley[1])
    }
    assert [together[row] for row in range(16)] == medley[1]
    assert len({done.tokens for done in medley[1]}) > 10


def test_samples_without_a_seed_differ(policy: Policy) -> None:
    texts = {policy.complete([prompt(policy, temperature=1.0)])[0].text for _ in range(3)}
    assert len(texts) > 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_draws_from_the_softmax(policy: Policy, temperature: float) -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    draws = 4000
    choice = generation._Choice([prompt(policy, temperature=temperature, seed=1)])
    ids = torch.zeros((1, 1), dtype=torch.long)
    drawn = torch.stack([choice(ids, logits.clone()).argmax() for _ in range(draws)])
    expected = (logits[0] / temperature).softmax(0)
    # Five standard deviations of a binomial share.
    tolerance = 5 * (expected * (1 - expected) / draws).sqrt()
    assert ((torch.bincount(drawn, minlength=4) / draws - expected).abs() < tolerance).all()


def test_each_row_has_its_own_token_limit(policy: Policy) -> None:
    rows = [prompt(policy, max_tokens=limit) for limit in (3, 30, 8)]
    together = policy.complete(rows)
    assert together == [policy.complete([row])[0] for row in rows]
    assert [done.completion_tokens for done in together if done.finish_reason == "length"] == [3, 30, 8]


def test_a_report_that_the_policy_ends_itself_stops_there(policy: Policy) -> None:
    words = policy.tokenizer.encode("The heart")
    ended = policy._completion(prompt(policy), [*words, policy.stop[0], policy.pad, policy.pad])
    assert (ended.text, ended.finish_reason) == ("The heart", "stop")
    assert ended.completion_tokens == len(words) + 1


def test_a_row_with_a_near_tie_is_generated_again_alone(
    policy: Policy, prompts: list[Prompt], alone: list[Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    generate = policy.model.generate

    def counted(**inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs["input_ids"]))
        return generate(**inputs)

    monkeypatch.setattr(policy.model, "generate", counted)
    monkeypatch.setattr(generation, "NEAR_TIE", 1e9)
    assert policy.complete(prompts[:3]) == alone[:3]
    assert sizes == [3, 1, 1, 1]


def test_generation_that_is_abandoned_ends_at_its_next_token(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "abandoned", True)
    assert policy.complete([prompt(policy, max_tokens=500)])[0].completion_tokens == 1


@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>", "<|vision_start|>"])
def test_a_text_with_a_control_token_is_refused(policy: Policy, token: str) -> None:
    with pytest.raises(Refused) as refused:
        prompt(policy, f"Heart {token} normal.")
    assert (refused.value.status, refused.value.code) == (400, "control_token")


def test_a_prompt_beyond_the_context_is_refused(policy: Policy) -> None:
    with pytest.raises(Refused) as refused:
        prompt(policy, "heart " * 5000)
    assert (refused.value.status, refused.value.code) == (400, "context_length")
