"""Overrides to a typed configuration and back: every rule, and what each mistake is told."""

import dataclasses
import logging
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marble_cli.balance.registry import names as balances
from marble_cli.config.compose import GROUPS, compose, dump, load_resolved
from marble_cli.config.keys import fields, unknown_key
from marble_cli.config.schema import (
    BalanceMode,
    OdeSolver,
    Precision,
    Quotes,
    Reduce,
    RewardConfig,
    RunConfig,
    SharedTerm,
    SourceConfig,
)
from marble_cli.errors import ConfigError

RunConfigMaker = Callable[..., RunConfig]

BUILT_IN = "rewards=[colorfulness,compressibility]"

# A key more or less is a decision: files of older runs hold them, and so do people's scripts.
REWARD = "plugin weight sources requires timeout retries max_failed optional url token_env isolated options.*"
GROUP_KEYS = {
    "run": "name dir",
    "model": "path revision variant clip precision resolution max_sequence_length guidance embedding_cache gradient_checkpointing "
    "compile device train",
    "model.lora": "rank alpha target_modules",
    "data": "root",
    "data.sources.*": "train test weight hub subset revision prompt_key quoted_as quotes negative_prompt metadata.*",
    "rewards.*": REWARD,
    "eval_rewards.*": REWARD,
    "algorithm": "beta kl_coef training_noise training_times",
    "algorithm.advantage": "std clip",
    "algorithm.behaviour": "schedule rate maximum delay",
    "balance": "name mode solver refresh_every refresh_fraction warmup ema floor amortize shared_term weights.* options.* groups.* priorities.* norm_priority reduce",
    "optimizer": "lr betas weight_decay epsilon clip_norm",
    "rollout": "groups group_size steps solver times guidance_scale cfg_normalization cfg_truncation batch_size",
    "evaluation": "steps solver times guidance_scale",
    "trainer": "steps seed micro_batch_size timestep_fraction times_per_image checkpoint_every keep_last keep_every best eval_every "
    "eval_prompts encode_ahead max_skipped pending_batches parallel fsdp.replicas fsdp.reshard",
    "trainer.ema": "decay warmup offset",
    "logging": "images_every",
    "logging.wandb": "mode project entity",
    "launcher": "name nodes nproc max_restarts grace time partition account cpus_per_task memory warning requeues setup extra.*",
}
KEYS = {f"{group}.{key}" for group, names in GROUP_KEYS.items() for key in names.split()}


def keys(node: Any, prefix: str = "") -> Iterator[str]:
    for name, kind in fields(node).items():
        if dataclasses.is_dataclass(kind):
            yield from keys(kind, f"{prefix}{name}.")
        elif typing.get_origin(kind) is dict:
            value = typing.get_args(kind)[1]
            below = (
                keys(value, f"{prefix}{name}.*.")
                if dataclasses.is_dataclass(value)
                else [f"{prefix}{name}.*"]
            )
            yield from below
        else:
            yield prefix + name


def test_the_keys_are_these() -> None:
    assert sorted(keys(RunConfig)) == sorted(KEYS)
    assert {key.split(".")[0] for key in KEYS} - {"run", "eval_rewards"} == set(GROUPS) - {"preset"}


def test_every_key_is_known_and_its_misspelling_is_not() -> None:
    for key in KEYS:
        assert unknown_key(key.replace("*", "x")) is None
    assert unknown_key("trainer.stepz") == (
        "there is no key 'trainer.stepz'; did you mean 'trainer.steps'? Known: "
        + ", ".join(sorted({".".join(key.split(".")[:2]) for key in KEYS if key.startswith("trainer.")}))
    )
    assert "holds a value, not further keys" in str(unknown_key("launcher.nproc.x"))
    assert "did you mean 'model.lora.alpha'" in str(unknown_key("model.lora.alph"))


def choices() -> list[str]:
    """Every file of conf/ as an override."""
    root = files("marble_cli") / ".." / "conf"
    return sorted(
        f"{group.name}={file.name.removesuffix('.yaml')}"
        for group in root.iterdir() if group.is_dir() and not group.name.startswith("_")
        for file in group.iterdir() if file.name.endswith(".yaml")
    )  # fmt: skip


def test_there_are_files_for_every_group() -> None:
    assert {choice.split("=")[0] for choice in choices()} == set(GROUPS)


@pytest.mark.parametrize("choice", choices())
def test_every_file_is_a_valid_choice(choice: str) -> None:
    more = {
        "data=files": ["data.root=somewhere"],
        "data=hub": ["data.sources.prompts.hub=owner/name"],
        "data=paper": ["data.root=somewhere"],
        "data=paper_quotes": ["data.root=somewhere"],
    }.get(choice, [])
    overrides = [choice, *more] if choice.startswith("rewards=") else [BUILT_IN, choice, *more]
    if choice.startswith("rewards="):
        name = choice.removeprefix("rewards=")
        overrides = [f"rewards=[compressibility,{name}]", *more]
    compose(overrides)


@pytest.mark.parametrize("name", balances())
def test_every_balance_is_a_choice(name: str) -> None:
    config = compose([BUILT_IN, f"balance={name}", "balance.floor=0.1"])
    assert config.balance.name == name
    assert config.balance.floor == 0.1
    assert (config.balance.mode is BalanceMode.output_space) == (name == "output_space")


def test_any_balance_of_torchjd_is_a_choice() -> None:
    config = compose([BUILT_IN, "balance=torchjd:UPGrad", "balance.refresh_every=3"])
    assert (config.balance.name, config.balance.refresh_every) == ("torchjd:UPGrad", 3)
    assert load_again(config) == config


def load_again(config: RunConfig) -> RunConfig:
    from omegaconf import OmegaConf

    from marble_cli.config.compose import typed

    return typed(OmegaConf.create(dump(config)))


def test_every_installed_reward_is_a_choice() -> None:
    for entry in entry_points(group="marble.rewards"):
        config = compose([f"rewards=[{entry.name}]"])
        assert config.rewards[entry.name].plugin == entry.name


def test_values_come_typed() -> None:
    config = compose(
        [
            BUILT_IN, "trainer.steps=7", "optimizer.lr=1", "model.precision=bf16", "rollout.solver=euler",
            "trainer.times_per_image=null", "balance.shared_term=outside", "optimizer.betas=[0.5,0.6]",
            "run.dir='a folder/${run.name}'", "run.name=x", "algorithm.advantage.std=group",
        ]
    )  # fmt: skip
    assert (config.trainer.steps, config.trainer.times_per_image) == (7, None)
    assert isinstance(config.optimizer.lr, float)
    assert config.model.precision is Precision.bf16
    assert config.rollout.solver is OdeSolver.euler
    assert config.balance.shared_term is SharedTerm.outside
    assert config.optimizer.betas == [0.5, 0.6]
    assert config.run.dir == str(Path("a folder/x").absolute())
    assert config.algorithm.advantage.std.value == "group"


def test_a_command_line_beats_the_preset() -> None:
    config = compose(["preset=tiny", BUILT_IN, "rollout.groups=3"])
    assert list(config.rewards) == ["colorfulness", "compressibility"]
    assert config.rollout.groups == 3


# Rewards


def test_a_rewards_keys_are_parted_into_the_hosts_and_its_own() -> None:
    config = compose(
        [
            BUILT_IN, "+rewards.mine={plugin: compressibility, weight: 2, quality: 40, sources: [text]}",
            "rewards.compressibility.quality=50", "rewards.compressibility.timeout=5",
            "+rewards.colorfulness.nested={a: [1, 2]}",
        ]
    )  # fmt: skip
    assert config.rewards == {
        "colorfulness": RewardConfig("colorfulness", options={"nested": {"a": [1, 2]}}),
        "compressibility": RewardConfig("compressibility", timeout=5.0, options={"quality": 50}),
        "mine": RewardConfig("compressibility", weight=2.0, sources=["text"], options={"quality": 40}),
    }


def test_rewards_are_left_out_added_and_weighted() -> None:
    assert list(compose([BUILT_IN, "~rewards.colorfulness"]).rewards) == ["compressibility"]
    assert list(compose([BUILT_IN, "+rewards.b={plugin: colorfulness}"]).rewards) == [
        "colorfulness", "compressibility", "b",
    ]  # fmt: skip
    assert (
        compose([BUILT_IN, "rewards.compressibility.weight=0.25"]).rewards["compressibility"].weight == 0.25
    )
    assert list(compose(["rewards=compressibility"]).rewards) == ["compressibility"]
    assert list(compose(["rewards=[compressibility,colorfulness]"]).rewards) == [
        "compressibility",
        "colorfulness",
    ]


def test_a_watched_reward_is_added() -> None:
    config = compose(["rewards=colorfulness", "+eval_rewards.small={plugin: compressibility, quality: 30}"])
    assert config.eval_rewards == {"small": RewardConfig("compressibility", options={"quality": 30})}


def test_an_optional_reward_that_is_not_installed_is_left_out_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "marble"):
        config = compose([BUILT_IN, "+rewards.more={plugin: nowhere, optional: true}"])
    assert list(config.rewards) == ["colorfulness", "compressibility"]
    assert "reward more is not installed; the run leaves it out" in caplog.text


@pytest.mark.parametrize("place", ["url: 'http://far:8600'", "isolated: true"])
def test_a_reward_elsewhere_need_not_be_installed_here(place: str) -> None:
    far = compose([BUILT_IN, f"+rewards.far={{plugin: nowhere, optional: true, {place}}}"]).rewards["far"]
    assert (far.url, far.isolated) in ((None, True), ("http://far:8600", False))


def test_balance_weights_take_names() -> None:
    assert compose([BUILT_IN, "balance=fixed", "balance.weights.colorfulness=2"]).balance.weights == {
        "colorfulness": 2.0
    }
    assert compose([BUILT_IN, "balance=weighted_sum", "balance.weights={colorfulness: 2, compressibility: 1}"]).balance.weights == {
        "colorfulness": 2.0, "compressibility": 1.0,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="finds its own"):
        compose([BUILT_IN, "balance=mgda", "balance.weights.colorfulness=2"])
    with pytest.raises(ConfigError, match=r"balance\.options: balance=marble takes none"):
        compose([BUILT_IN, "balance.options.c=1"])
    with pytest.raises(ConfigError, match=r"balance\.weights: balance=torchjd:UPGrad finds its own"):
        compose([BUILT_IN, "balance=torchjd:UPGrad", "balance.weights.colorfulness=2"])


def test_groups_and_priorities_take_names(tmp_path: Path) -> None:
    config, file = written(
        tmp_path, BUILT_IN, "balance.groups.both=[colorfulness,compressibility]", "balance.priorities.both=2"
    )
    assert config.balance.groups == {"both": ["colorfulness", "compressibility"]}
    assert config.balance.priorities == {"both": 2.0}
    assert compose([], file) == config
    assert compose(["~balance.groups.both", "~balance.priorities.both"], file).balance.groups == {}
    whole = compose([BUILT_IN, "balance=mgda", "balance.groups={a: [colorfulness], b: [compressibility]}"])
    assert whole.balance.groups == {"a": ["colorfulness"], "b": ["compressibility"]}


def test_a_mixture_of_raw_rewards_is_a_sum_or_a_mean() -> None:
    assert compose([BUILT_IN, "balance=weighted_sum"]).balance.reduce is Reduce.sum
    assert compose([BUILT_IN, "balance=weighted_sum", "balance.reduce=mean"]).balance.reduce is Reduce.mean
    with pytest.raises(ConfigError, match=r"balance\.reduce"):
        compose([BUILT_IN, "balance=weighted_sum", "balance.reduce=median"])


@pytest.mark.parametrize("name", [*sorted({*balances()} - {"weighted_sum"}), "torchjd:UPGrad"])
def test_only_the_weighted_sum_is_a_mean(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^balance\.reduce=mean: balance={name} .*balance=weighted_sum"):
        compose([BUILT_IN, f"balance={name}", "balance.reduce=mean"])


@pytest.mark.parametrize("name", ["equal", "fixed", "weighted_sum", "advantage_sum", "torchjd:UPGrad"])
@pytest.mark.parametrize("key", ["groups.a=[colorfulness]", "priorities.colorfulness=2"])
def test_only_a_programme_has_groups_and_priorities(name: str, key: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^balance\.{key.split('.')[0]}: balance={name} .*balance=marble, mgda"
    ):
        compose([BUILT_IN, f"balance={name}", f"balance.{key}"])


# Prompt sources


def test_a_source_takes_keys_that_no_file_names(tmp_path: Path) -> None:
    config, file = written(
        tmp_path, BUILT_IN, "data.sources.text.quoted_as=word", "data.sources.general.metadata.tag=plain",
        "data.sources.general.metadata.level={a: [1, 2]}", "data.sources.general.negative_prompt='grey, blurred'",
        "+data.sources.more={hub: owner/name, revision: main, train: 'train[:9]', test: test, prompt_key: caption}",
    )  # fmt: skip
    general, more = config.data.sources["general"], config.data.sources["more"]
    assert general.metadata == {"tag": "plain", "level": {"a": [1, 2]}}
    assert general.negative_prompt == "grey, blurred"
    assert config.data.sources["text"].quoted_as == "word"
    assert more == SourceConfig("train[:9]", "test", 1.0, "owner/name", None, "main", "caption")
    assert compose([], file) == config
    assert compose(["~data.sources.general.metadata.tag"], file).data.sources["general"].metadata == {
        "level": {"a": [1, 2]}
    }


def test_the_published_prompts_are_drawn_evenly() -> None:
    sources = compose([BUILT_IN, "data=paper", "data.root=/data"]).data.sources
    assert {name: (s.train, s.test, s.weight, s.quoted_as) for name, s in sources.items()} == {
        "pickscore": ("pickscore/train.txt", "pickscore/test.txt", 1.0, None),
        "ocr": ("ocr/train.txt", "ocr/test.txt", 1.0, "text"),
        "geneval": ("geneval/train_metadata.jsonl", "geneval/test_metadata.jsonl", 1.0, None),
    }


def test_the_published_ocr_reward_looks_for_quotes_everywhere() -> None:
    sources = compose([BUILT_IN, "data=paper_quotes", "data.root=/data"]).data.sources
    assert {name: (s.quoted_as, s.quotes) for name, s in sources.items()} == dict.fromkeys(
        ("pickscore", "ocr", "geneval"), ("text", Quotes.straight)
    )
    plain = compose([BUILT_IN, "data=paper", "data.root=/data"]).data.sources
    again = {
        n: dataclasses.replace(s, quoted_as=plain[n].quoted_as, quotes=Quotes.required)
        for n, s in sources.items()
    }
    assert again == plain


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("data.sources.text.quotes=straight", "data.sources.text.quotes=straight: nothing asks for what is in quotes"),
        ("data.sources.text.quotes=curly", "data.sources.text.quotes"),
        ("data=hub", "data.sources.prompts.hub has no value"),
        ("data.sources.txt.weight=2", "data.sources.txt: there is no such source; did you mean 'text'"),
        ("data.sources.text.quoted_is=x", "did you mean 'data.sources.text.quoted_as'"),
        ("+data.sources.more={train: a.txt}", "data.sources.more={train: FILE, test: FILE}"),
        ("data.sources.txt.train=a.txt", "data.sources.txt: there is no such source; did you mean 'text'"),
        ("+data.sources.more=3", "data.sources.more"),
        ("data.sources.text.train=a.csv", "data.sources.text.train=a.csv: expected a file that ends in .txt, .jsonl"),
        ("data.sources.text.train=", "data.sources.text.train is empty. Expected a name."),
        ("data.sources.text.hub=' '", "data.sources.text.hub is empty. Expected a name, or null."),
        ("data.sources.text.subset=x", "data.sources.text.subset=x: files have none. Expected it beside data.sources.text.hub"),
        ("data.sources.text.revision=x", "data.sources.text.revision=x: files have none"),
        ("data=files data.root=x data.sources.prompts.prompt_key=caption", "train.txt is plain text, which has no keys"),
        ("data.sources.text.metadata.prompt=x", "data.sources.text says already where 'prompt' comes from"),
        ("data.sources.text.metadata.negative_prompt=x", "says already where 'negative_prompt' comes from"),
        ("data.sources.text.metadata.t=x data.sources.text.quoted_as=t", "says already where 't' comes from"),
        ("data.sources.text.quoted_as=prompt", "data.sources.text.quoted_as=prompt: expected a key of metadata"),
        ("data.sources.text.metadata=x", "data.sources.text.metadata"),
    ],
)  # fmt: skip
def test_a_sources_keys_are_checked_together(overrides: str, said: str) -> None:
    parts = overrides.split(" data") if " data" in overrides else [overrides]
    with pytest.raises(ConfigError) as error:
        compose([BUILT_IN, parts[0], *(f"data{part}" for part in parts[1:])])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# Replays

MANY = [
    "rewards=[compressibility,colorfulness]", "+rewards.mine={plugin: compressibility, quality: 40, sources: [text]}",
    "+eval_rewards.watch={plugin: colorfulness}", "balance=fixed", "balance.weights.mine=3", "model.lora.rank=5",
    "trainer.times_per_image=null", "optimizer.lr=1e-5", "run.dir='with space/${run.name}'", "model.revision='123'",
]  # fmt: skip


def written(folder: Path, *overrides: str) -> tuple[RunConfig, str]:
    config = compose(overrides)
    file = folder / "config.yaml"
    file.write_text(dump(config))
    return config, str(file)


def test_what_is_dumped_repeats_the_run(tmp_path: Path) -> None:
    config, file = written(tmp_path, *MANY)
    assert compose([], file) == config
    assert load_resolved(Path(file)) == config
    assert list(compose([], file).rewards) == ["compressibility", "colorfulness", "mine"]
    assert dump(compose([], file)) == dump(config)


def test_a_repeated_run_takes_overrides(tmp_path: Path) -> None:
    config, file = written(tmp_path, *MANY)
    again = compose(
        [
            "trainer.steps=3",
            "rewards.mine.quality=20",
            "~rewards.colorfulness",
            "+rewards.b={plugin: colorfulness}",
        ],
        file,
    )
    assert again.trainer.steps == 3
    assert list(again.rewards) == ["compressibility", "mine", "b"]
    assert again.rewards["mine"].options == {"quality": 20}
    assert again.rewards["mine"].sources == ["text"]
    assert dataclasses.replace(again, trainer=config.trainer, rewards=config.rewards) == config


def test_a_chosen_group_replaces_the_files_whole(tmp_path: Path) -> None:
    config, file = written(tmp_path, *MANY)
    again = compose(["balance=mgda", "balance.floor=0.1", "rewards=[colorfulness]"], file)
    assert again.balance == compose(["balance=mgda", "balance.floor=0.1", BUILT_IN]).balance
    assert again.rewards == {"colorfulness": RewardConfig("colorfulness")}
    assert again.model == config.model


def test_a_preset_would_undo_a_resolved_file(tmp_path: Path) -> None:
    _, file = written(tmp_path, *MANY)
    with pytest.raises(ConfigError, match="preset=tiny: .* is resolved"):
        compose(["preset=tiny"], file)


def test_mistakes_in_a_repeated_run_are_told(tmp_path: Path) -> None:
    _, file = written(tmp_path, *MANY)
    for override, said in (
        ("trainer.step=3", "did you mean 'trainer.steps'"),
        ("balance=mdga", "did you mean 'mgda'"),
        ("~rewards.min", "did you mean 'mine'"),
        ("trainer.steps=x", "trainer.steps"),
    ):
        with pytest.raises(ConfigError, match=said):
            compose([override], file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- 1\n", "holds no mapping"),
        ("a: [\n", "cannot be read"),
        ("foo: 1\n", "there is no key 'foo'"),
        ("trainer:\n  stepz: 1\n", "did you mean 'trainer.steps'"),
        ("trainer:\n  steps: 1\n", "has no value"),
        ("rewards:\n  a: 1\n", "rewards.a=1: expected keys"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        compose([], str(file))
    assert said in str(error.value)


def test_configs_are_chosen_by_name() -> None:
    assert compose([BUILT_IN, "run.name=x"], "config") == compose([BUILT_IN, "run.name=x"])
    with pytest.raises(
        ConfigError, match=r"no config 'confg'; did you mean 'config'\? Known: config, or the path"
    ):
        compose([], "confg")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        compose([], "nowhere.yaml")


# Mistakes


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("foo=1", "there is no key 'foo'"),
        ("trainer.stepz=1", "did you mean 'trainer.steps'"),
        ("+trainer.stepz=1", "did you mean 'trainer.steps'"),
        ("++trainer.ema.decy=1", "did you mean 'trainer.ema.decay'"),
        ("modle.path=x", "did you mean 'model'"),
        ("hydra.run.dir=x", "there is no key 'hydra.run.dir'"),
        ("launcher.nproc.x=1", "launcher.nproc holds a value"),
        ("balance=mrble", "did you mean 'marble'"),
        ("trainer=foo", "there is no such choice. Known: default"),
        ("preset=tinny", "did you mean 'tiny'"),
        ("rewards=[colorfulnes]", "did you mean 'colorfulness'"),
        ("~rewards.colorfulnes", "did you mean 'colorfulness'"),
        ("~trainer.stepz", "there is no key 'trainer.stepz'; did you mean 'trainer.steps'"),
        ("rewards.colorfulnes.weight=2", "did you mean 'colorfulness'"),
        ("+rewards.x={weight: 1}", "'+rewards.x={plugin: NAME}'"),
        ("+rewards.x=3", "rewards.x=3: expected keys"),
        ("+rewards.x={plugin: colorfulnes}", "rewards.x.plugin=colorfulnes: no such reward is installed; did you mean"),
        ("+rewards.x={plugin: far, url: far:80}", "rewards.x.url=far:80: expected http://HOST:PORT"),
        ("+rewards.x={plugin: far, url: 'http://me:word@far:80'}", "a token belongs in the environment"),
        ("+rewards.x={plugin: far, url: 'http://:word@far:80'}", "a token belongs in the environment"),
        ("+rewards.x={plugin: far, url: 'http://['}", "rewards.x.url=http://[: expected http://HOST:PORT"),
        ("+rewards.x={plugin: far, url: 'http://far:99999'}", "rewards.x.url=http://far:99999: expected http://HOST:PORT"),
        ("+rewards.x={plugin: far, url: 'http://far:many'}", "rewards.x.url=http://far:many: expected http://HOST:PORT"),
        ("+rewards.x={plugin: far, url: 'http://far:80', isolated: true}", "Expected one of them"),
        ("+rewards.x={plugin: far, url: 'http://far:80', depth: 3}", "rewards.x.depth: the options of a reward with a url"),
        ("rewards.colorfulness.token_env=MINE", "no rewards.colorfulness.url that it belongs to"),
        ("+eval_rewards.x={plugin: colorfulnes}", "eval_rewards.x.plugin=colorfulnes"),
        ("+eval_rewards.colorfulness={plugin: colorfulness}", "eval_rewards.colorfulness: rewards.colorfulness has the same name"),
        ("rewards.colorfulness.sources=[txt]", "there is no source 'txt'; did you mean 'text'"),
        ("rewards=[]", "rewards is empty"),
        ("trainer.steps=many", "trainer.steps: Value 'many'"),
        ("trainer.steps=1.5", "trainer.steps: Value '1.5'"),
        ("trainer.steps=null", "trainer.steps"),
        ("trainer.steps=", "trainer.steps: Value ''"),
        ("model.lora.rank=true", "model.lora.rank"),
        ("rewards.colorfulness.weight=heavy", "rewards.colorfulness.weight: Value 'heavy'"),
        ("model.precision=fp12", "expected one of [fp32, bf16, fp16]"),
        ("algorithm.advantage.std=globl", "expected one of [global, group]"),
        ("model.lora.target_modules=to_q", "model.lora.target_modules"),
        ("trainer.steps=1,2", "asks for several values"),
        ("trainer.steps=range(1,3)", "asks for several values"),
        ("trainer.steps", "cannot be read"),
        ("a b", "cannot be read"),
        ("run.dir=${nowhere}", "nowhere"),
        ("~trainer.steps", "trainer.steps has no value"),
        ("model.path=???", "model.path has no value"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_what_was_meant(override: str, said: str) -> None:
    rewards = [] if override.startswith("rewards=") else [BUILT_IN]
    with pytest.raises(ConfigError) as error:
        compose([*rewards, override])
    assert said in str(error.value)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        *((f"{key}=0", "at least 1") for key in (
            "rollout.groups", "rollout.steps", "rollout.batch_size", "trainer.micro_batch_size",
            "trainer.checkpoint_every", "trainer.keep_last", "trainer.eval_prompts", "trainer.pending_batches", "trainer.encode_ahead",
            "trainer.times_per_image", "balance.refresh_every", "model.lora.rank", "launcher.nproc")),
        *((f"{key}=-1", "at least 0") for key in (
            "trainer.steps", "trainer.eval_every", "trainer.keep_every", "trainer.ema.warmup", "balance.warmup", "algorithm.kl_coef",
            "algorithm.behaviour.rate", "optimizer.weight_decay", "model.max_sequence_length",
            "data.sources.text.weight", "rewards.colorfulness.weight", "rewards.colorfulness.retries")),
        ("balance.refresh_fraction=0", "(0, 1]"),
        ("balance.norm_priority=-1", "[0, 4]"), ("balance.refresh_fraction=1.1", "(0, 1]"),
        *((f"{key}=0", "above 0") for key in (
            "algorithm.beta", "algorithm.advantage.clip", "optimizer.lr", "optimizer.epsilon", "optimizer.clip_norm",
            "model.lora.alpha", "rewards.colorfulness.timeout", "balance.priorities.colorfulness")),
        *((f"{key}={value}", "[0, 1") for key in (
            "trainer.timestep_fraction", "trainer.ema.decay", "balance.ema", "balance.floor",
            "algorithm.behaviour.maximum", "rewards.colorfulness.max_failed") for value in (-0.1, 1.1, "nan")),
        *((f"{key}=1.0", "[0, 1)") for key in ("trainer.ema.decay", "balance.ema")),
        *((f"{key}={value}", "above 0") for key in ("optimizer.lr", "algorithm.beta", "balance.priorities.colorfulness")
          for value in ("nan", "inf")),
        ("rollout.group_size=1", "at least 2"), ("rollout.guidance_scale=0.5", "0 or at least 1; both 0 and 1 mean no guidance"), ("rollout.guidance_scale=inf", "at least 1"), ("rollout.cfg_normalization=-1", "at least 0"), ("rollout.cfg_truncation=1.1", "[0, 1]"), ("model.resolution=7", "at least 8"), ("model.embedding_cache=", "a folder or null"), ("model.path=", "a folder, a hub id or tiny"), ("model.guidance=-1", "at least 0"),
        ("model.guidance=nan", "at least 0"), ("optimizer.betas=[0.9]", "two numbers"),
        ("optimizer.betas=[0.9,1.0]", "two numbers"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named_with_its_range(
    run_config: RunConfigMaker, override: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as error:
        run_config(override)
    assert str(error.value).startswith(override.split("=")[0] + "=")
    assert expected in str(error.value)


def test_some_source_must_have_a_weight() -> None:
    zero = [f"data.sources.{name}.weight=0" for name in ("general", "text", "compositional")]
    compose([BUILT_IN, *zero[:2]])
    with pytest.raises(ConfigError, match="at least one source"):
        compose([BUILT_IN, *zero])


@pytest.mark.parametrize("name", ["weighted_sum", "advantage_sum"])
def test_mixtures_have_no_output_space(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"balance={name} mixes the rewards before"):
        compose([BUILT_IN, f"balance={name}", "balance.mode=output_space"])


@settings(max_examples=40, deadline=None)
@given(
    st.text(max_size=12),
    st.sampled_from(["{}", "+{}", "~{}", "{}=1", "trainer.{}=1", "rewards.{}.weight=1", "balance={}"]),
)
def test_whatever_is_asked_is_composed_or_refused(text: str, form: str) -> None:
    """No other error than one with a message, whatever the override."""
    with suppress(ConfigError):
        assert compose([BUILT_IN, form.format(text)]).rewards


def test_one_composition_leaves_nothing_for_the_next(tmp_path: Path) -> None:
    before = compose([BUILT_IN, "run.name=x"])
    _, file = written(tmp_path, *MANY)
    compose(["trainer.steps=3"], file)
    with pytest.raises(ConfigError):
        compose(["trainer.stepz=3"])
    assert compose([BUILT_IN, "run.name=x"]) == before


# Imports


def imported(module: str) -> set[str]:
    """The top-level packages that a fresh interpreter holds after importing `module`."""
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
    )


def test_composing_needs_no_model_library() -> None:
    assert not imported("marble_cli.config.compose") & {
        "torch",
        "diffusers",
        "transformers",
        "peft",
        "scipy",
        "wandb",
    }


def test_balances_need_no_model_library() -> None:
    packages = imported("marble_cli.balance")
    assert "torch" in packages
    assert not packages & {"diffusers", "transformers", "peft", "wandb"}
