"""Which prompts a reward applies to: counted, refused where there is none, and what a run scores."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.aspects import reward_keys
from marble_cli.config.compose import compose
from marble_cli.config.schema import RunConfig
from marble_cli.data.prompts import Prompt, load_prompts
from marble_cli.errors import ConfigError
from marble_cli.metrics.jsonl import read_rows
from marble_cli.plan.checks import applicable, check_applicable, check_plugins
from marble_cli.rewards.api import Declaration
from marble_cli.run.train import train

RunConfigMaker = Callable[..., RunConfig]
PROMPTS = {
    "general": [Prompt("a", {}, "general")] * 3,
    "text": [Prompt("b", {"text": "b"}, "text"), Prompt("c", {"text": "c", "level": 1}, "text")],
    "compositional": [Prompt("d", {"include": [], "level": 2}, "compositional")],
}


@pytest.mark.parametrize(
    ("keys", "counts"),
    [
        ("weight: 1", [3, 2, 1]),
        ("requires: [text]", [0, 2, 0]),
        ("requires: [level]", [0, 1, 1]),
        ("requires: [level, text]", [0, 1, 0]),
        ("requires: [level], sources: [compositional, general]", [0, 0, 1]),
    ],
)
def test_prompts_that_a_reward_is_asked_about_are_counted(
    run_config: RunConfigMaker, keys: str, counts: list[int]
) -> None:
    reward = run_config(f"+rewards.it={{plugin: colorfulness, {keys}}}").rewards["it"]
    assert applicable(reward, Declaration(), PROMPTS) == dict(zip(PROMPTS, counts, strict=True))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["rewards.colorfulness.requires=[txt]"],
            "it requires the metadata 'txt', which no prompt of the sources general, text, compositional has",
        ),
        (["rewards.colorfulness.requires=[text,include]"], "the metadata 'text' and 'include'"),
        (
            ["rewards.colorfulness.requires=[text]", "rewards.colorfulness.sources=[general]"],
            "no prompt of the sources general has",
        ),
        (
            ["rewards.colorfulness.requires=[text]", "data.sources.text.weight=0"],
            "of the sources general, compositional has",
        ),
        (
            ["rewards.colorfulness.sources=[text]", "data.sources.text.weight=0"],
            "sources=['text']: none of them has a weight",
        ),
        (
            ["+eval_rewards.it={plugin: colorfulness, requires: [txt]}"],
            "eval_rewards.it applies to no prompt",
        ),
        (
            [
                "rewards.colorfulness.sources=[text]",
                "rewards.compressibility.sources=[general]",
                "rewards.compressibility.only_if=colorfulness > 1",
            ],
            "rewards.compressibility.only_if='colorfulness > 1': no prompt concerns both this reward",
        ),
    ],
)
def test_a_reward_that_no_prompt_can_satisfy_is_refused(
    run_config: RunConfigMaker, overrides: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        check(run_config(*overrides), PROMPTS)
    assert said in str(error.value)


def check(config: RunConfig, held_out: dict[str, list[Prompt]]) -> None:
    declarations = check_plugins({**config.rewards, **config.eval_rewards}, reward_keys(config))
    check_applicable(config, declarations, PROMPTS, held_out)


def test_a_reward_that_is_never_evaluated_is_said(
    run_config: RunConfigMaker, caplog: pytest.LogCaptureFixture
) -> None:
    with_text = "rewards.colorfulness.requires=[text]"
    held_out = {"general": PROMPTS["general"]}
    with caplog.at_level(logging.WARNING, "marble"):
        check(run_config(with_text), held_out)
        assert not caplog.text
        check(run_config(with_text, "trainer.eval_every=1"), held_out)
    assert "reward colorfulness applies to no held-out prompt, so evaluations leave it out" in caplog.text


@pytest.fixture
def on_published(base_overrides: list[str], published: Path) -> RunConfigMaker:
    """A function of further overrides that composes a run on these prompts."""
    model = [override for override in base_overrides if not override.startswith("data")]
    return lambda *more: compose([*model, "data=paper", f"data.root={published}", *more])


def test_the_published_folders_are_read_and_trained_on(on_published: RunConfigMaker, tmp_path: Path) -> None:
    """Guided rollouts from three sources, with a reward for each kind of metadata."""
    config = on_published(
        "rewards.colorfulness.requires=[text]",
        "rewards.compressibility.requires=[include]",
        "+rewards.every={plugin: colorfulness}",
        "rollout.groups=6",
        "rollout.guidance_scale=3",
        "trainer.eval_every=2",
        "data.sources.pickscore.negative_prompt='blurred, grey'",
        f"run.dir={tmp_path / 'run'}",
    )
    prompts = load_prompts(config.data, "train")
    assert [prompts[name][1].metadata for name in ("pickscore", "ocr")] == [{}, {"text": "Gas 2"}]
    assert set(prompts["geneval"][0].metadata) == {"tag", "include", "exclude"}
    assert train(config, resume="auto") == 0
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    trained = [row for row in rows if row["phase"] == "train"]
    assert len(trained) == 2
    for row in trained:
        counts = [row[f"reward/{name}/applicable"] for name in ("colorfulness", "compressibility", "every")]
        assert counts == [6, 6, 18]


def test_a_run_refuses_a_reward_without_prompts_before_it_begins(
    on_published: RunConfigMaker, tmp_path: Path
) -> None:
    config = on_published(
        "data.sources.ocr.quoted_as=null",
        "rewards.colorfulness.requires=[text]",
        f"run.dir={tmp_path / 'run'}",
    )
    with pytest.raises(
        ConfigError, match=r"'text', which no prompt of the sources pickscore, ocr, geneval has"
    ):
        train(config, resume="auto")
    assert not (tmp_path / "run").exists()
