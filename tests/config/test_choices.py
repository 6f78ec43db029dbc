"""Every file of conf/, every balance and every installed reward is a choice of its group."""

from importlib.metadata import entry_points
from importlib.resources import files
from itertools import zip_longest

import pytest

from marble_cli.balance.registry import names as balances
from marble_cli.config.compose import GROUPS, compose, dump
from marble_cli.config.enums import BalanceMode
from marble_cli.config.schema import RunConfig
from tests.config.composing import BUILT_IN


def files_of_groups() -> dict[str, list[str]]:
    """The names of the files in each folder of conf/, apart from benchmarks, which no run has."""
    root = files("marble_cli") / ".." / "conf"
    return {
        group.name: sorted(
            file.name.removesuffix(".yaml") for file in group.iterdir() if file.name.endswith(".yaml")
        )
        for group in root.iterdir()
        if group.is_dir() and not group.name.startswith("_") and group.name != "benchmark"
    }


def choices() -> list[tuple[str, ...]]:
    """Every file as an override: presets alone, as they choose in all groups, and the rest side by side."""
    groups = files_of_groups()
    alone = [(f"preset={name}",) for name in groups.pop("preset")]
    groups["rewards"] = [f"[compressibility,{name}]" for name in groups["rewards"]]
    rows = zip_longest(*([f"{group}={name}" for name in names] for group, names in groups.items()))
    return alone + [tuple(choice for choice in row if choice) for row in rows]


def test_every_group_has_a_file() -> None:
    assert files_of_groups().keys() == set(GROUPS)


@pytest.mark.parametrize("chosen", choices(), ids=" ".join)
def test_every_file_is_a_valid_choice(chosen: tuple[str, ...]) -> None:
    more = {
        "data=files": ["data.root=somewhere"],
        "data=hub": ["data.sources.prompts.hub=owner/name"],
        "data=paper": ["data.root=somewhere"],
        "data=paper_quotes": ["data.root=somewhere"],
    }
    needed = [override for choice in chosen for override in more.get(choice, [])]
    rewards = [] if any(choice.startswith("rewards=") for choice in chosen) else [BUILT_IN]
    compose([*rewards, *chosen, *needed])


@pytest.mark.parametrize("name", balances())
def test_every_balance_is_a_choice(name: str) -> None:
    config = compose([BUILT_IN, f"balance={name}", "balance.floor=0.1"])
    assert config.balance.name == name
    assert config.balance.floor == 0.1
    assert (config.balance.mode is BalanceMode.output_space) == (name == "output_space")


def test_torchjd_balance_is_a_choice() -> None:
    config = compose([BUILT_IN, "balance=torchjd:UPGrad", "balance.refresh_every=3"])
    assert (config.balance.name, config.balance.refresh_every) == ("torchjd:UPGrad", 3)
    assert load_again(config) == config


def load_again(config: RunConfig) -> RunConfig:
    from omegaconf import OmegaConf

    from marble_cli.config.typed import typed

    return typed(OmegaConf.create(dump(config)))


def test_every_installed_reward_is_a_choice() -> None:
    names = sorted(entry_points(group="marble.rewards").names)
    assert {
        name: reward.plugin for name, reward in compose([f"rewards=[{','.join(names)}]"]).rewards.items()
    } == {name: name for name in names}


def test_all_images_or_a_share_are_selected() -> None:
    """By one word, or by keys; a resolved file keeps the keys."""
    whole = compose([BUILT_IN, "trainer.select.fraction=0.25", "trainer.select=all"])
    share = compose([BUILT_IN, "trainer.select={fraction: 0.5, by: signal}"])
    assert (whole.trainer.select.fraction, share.trainer.select.fraction) == (1.0, 0.5)
    assert load_again(whole) == whole
    assert load_again(share) == share
