"""The prompt sampler is a pure function of seed and step, fair to its sources."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from marble_cli.data.prompts import Prompt
from marble_cli.data.sampler import PromptSampler

SOURCES = {
    name: [Prompt(f"{name}{i}", {}, name) for i in range(7)] for name in ("general", "text", "objects")
}


def sampler(groups: int = 4, seed: int = 0, weights: dict[str, float] | None = None) -> PromptSampler:
    return PromptSampler(SOURCES, weights or dict.fromkeys(SOURCES, 1.0), groups, seed)


def test_a_step_does_not_depend_on_those_before() -> None:
    forward = [sampler().step(step) for step in range(1, 9)]
    assert [sampler().step(step) for step in range(8, 0, -1)] == forward[::-1]


def test_the_seed_matters() -> None:
    assert [sampler(seed=0).step(s) for s in range(1, 5)] != [sampler(seed=1).step(s) for s in range(1, 5)]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.lists(st.floats(0.1, 5.0), min_size=3, max_size=3))
def test_shares_are_exact_to_a_prompt(groups: int, steps: int, weights: list[float]) -> None:
    chosen = sampler(groups, 0, dict(zip(SOURCES, weights, strict=True)))
    drawn = [chosen.step(step) for step in range(1, steps + 1)]
    assert all(len(prompts) == groups for prompts in drawn)
    served = Counter(prompt.source for prompts in drawn for prompt in prompts)
    for name, weight in zip(SOURCES, weights, strict=True):
        assert abs(served[name] - groups * steps * weight / sum(weights)) <= 1.0 + 1e-9


def test_every_prompt_comes_once_an_epoch() -> None:
    drawn = [prompt.text for step in range(1, 8) for prompt in sampler(groups=3).step(step)]
    assert len(drawn) == 21
    assert set(Counter(drawn).values()) == {1}
