"""The prompt sampler is a pure function of seed and step, fair to its sources."""

import time
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marble_cli.data.prompts import Prompt
from marble_cli.data.schedule import PromptSampler
from marble_cli.distributed.shares import share
from marble_cli.seeds import generator

SOURCES = {
    name: [Prompt(f"{name}{i}", {}, name) for i in range(7)] for name in ("general", "text", "objects")
}


def sampler(groups: int = 4, seed: int = 0, weights: dict[str, float] | None = None) -> PromptSampler:
    return PromptSampler(SOURCES, weights or dict.fromkeys(SOURCES, 1.0), groups, seed)


def test_step_does_not_depend_on_earlier_calls() -> None:
    forward = [sampler().step(step) for step in range(1, 9)]
    assert [sampler().step(step) for step in range(8, 0, -1)] == forward[::-1]


def test_other_seed_draws_other_prompts() -> None:
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


def test_every_prompt_comes_once_per_epoch() -> None:
    drawn = [prompt.text for step in range(1, 8) for prompt in sampler(groups=3).step(step)]
    assert len(drawn) == 21
    assert set(Counter(drawn).values()) == {1}


def test_order_of_an_epoch_depends_on_the_seed_alone() -> None:
    """Steps in any order, over epochs of two sources of different length, against the permutations."""
    sources = {name: [Prompt(f"{name}{i}", {}, name) for i in range(n)] for name, n in (("a", 5), ("b", 3))}
    chosen = PromptSampler(sources, {"a": 1.0, "b": 1.0}, 4, 9)
    orders = {
        (name, epoch): torch.randperm(len(rows), generator=generator(9, "epoch", name, epoch)).tolist()
        for name, rows in sources.items()
        for epoch in range(9)
    }
    for step in (6, 1, 2, 6, 5, 3):
        drawn = {prompt.text for prompt in chosen.step(step)}
        places = [
            (*divmod(place, len(sources[name])), name)
            for name in "ab"
            for place in (2 * step - 2, 2 * step - 1)
        ]
        assert drawn == {f"{name}{orders[name, epoch][index]}" for epoch, index, name in places}


def test_other_prompts_keep_the_sources_and_are_new_to_the_step() -> None:
    """Seven prompts a source: two are in use, so five are left for six places."""
    chosen = sampler()
    dead = [SOURCES["text"][0], SOURCES["general"][3], *[SOURCES["text"][1]] * 5]
    used = {("text0", ""), ("text1", ""), ("general3", "")}
    found = chosen.others(3, 1, dead, used)
    text = [prompt.text for prompt in (found[0], *found[2:]) if prompt is not None]
    assert sorted(text) == [f"text{i}" for i in range(2, 7)]
    assert found[-1] is None
    assert found[1] is not None
    assert found[1].source == "general"
    assert found[1].text != "general3"
    assert sampler().others(3, 1, dead, used) == found
    assert sampler().others(3, 2, dead, used) != found
    assert chosen.step(3) == sampler().step(3), "the steps' own prompts do not depend on it"


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_ranks_split_a_step_into_whole_groups(world: int) -> None:
    """Together, ranks hold one process's prompts in its order; all images of a prompt are on one rank."""
    size, expected = 3, [prompt.text for prompt in sampler(12).step(5) for _ in range(3)]
    parts = []
    for rank in range(world):
        images = [prompt.text for prompt in sampler(12).step(5) for _ in range(size)]
        parts.append([images[i] for i in share([512] * len(images), world, size).own(rank)])
    assert [text for part in parts for text in part] == expected
    for part in parts:
        assert all(part[i : i + size] == [part[i]] * size for i in range(0, len(part), size))
        assert len(part) == len(expected) // world


def test_step_time_does_not_grow_with_the_source() -> None:
    """One order an epoch: a hundred steps of 48 prompts would else take several seconds."""
    sources = {name: [Prompt(name, {}, name)] * 200_000 for name in "abc"}
    chosen = PromptSampler(sources, dict.fromkeys(sources, 1.0), 48, 0)
    chosen.step(1)
    began = time.process_time()
    for step in range(2, 102):
        chosen.step(step)
    assert time.process_time() - began < 1.0
