"""From entry points to rewards that can be called."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from marble_cli.errors import ConfigError, RewardError
from marble_cli.plugins import installed
from marble_cli.rewards.api import Batch, Declaration
from marble_cli.rewards.elsewhere.protocol import declaration_to_json
from marble_cli.rewards.registry import build, check_options, load_plugin

Install = Callable[..., None]


def batch() -> Batch:
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 4, 4)
    return Batch(images, ["a", "ab", "abc"], [{}, {"text": "x"}, {"text": "x", "n": 1}])


def test_the_builtin_rewards_enter_like_any_other() -> None:
    assert {"colorfulness", "compressibility"} <= set(installed())


def test_naming_plugins_imports_none_of_them() -> None:
    code = (
        "import sys; from marble_cli.plugins import installed; names = installed(); "
        "assert 'colorfulness' in names; assert 'torch' not in sys.modules; "
        "assert not any(name.startswith('marble_reward_') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("plugin", "scores"),
    [
        ("brightness", [0, 1, 2]),
        ("whole_batch", [1, 3, 5]),
        ("by_keyword", [1, 3, 5]),
        ("everything", [3, 3, 3]),
        ("AnyOption", [2, 2, 2]),
        ("own_names", [9, 9, 9]),
        ("by_place", [1, 3, 5]),
        ("ByNew", [1, 1, 1]),
        ("Table", [0, 0, 0]),
        ("Network", [0, 1, 2]),
        ("OwnCall", [3, 4, 5]),
        ("HelperForward", [1, 3, 5]),
    ],
)
def test_every_form_of_a_plugin_gets_the_parameters_it_takes(
    install: Install, plugin: str, scores: list[int]
) -> None:
    install(mine=plugin)
    reward = build("name", "mine", {}, "cpu")
    assert reward.name == "name"
    assert list(reward.call(batch())) == scores


def test_a_class_is_built_with_its_options_device_and_dtype(install: Install) -> None:
    install(scaled="Scaled")
    reward = build("mine", "scaled", {"scale": 2.0, "offset": 1.0}, "xpu:7", "bfloat16")
    assert reward.call(batch()).tolist() == [1, 3, 5]
    assert reward.declaration.requires == ("text",)
    cell = reward.call.__closure__ or ()
    (instance,) = (c.cell_contents for c in cell if type(c.cell_contents).__name__ == "Scaled")
    assert (instance.device, instance.dtype) == ("xpu:7", torch.bfloat16)


def test_device_and_dtype_may_be_options(install: Install) -> None:
    install(scaled="Scaled")
    reward = build("mine", "scaled", {"scale": 1.0, "device": "cpu", "dtype": "float16"}, "cuda:7")
    cell = reward.call.__closure__ or ()
    (instance,) = (c.cell_contents for c in cell if type(c.cell_contents).__name__ == "Scaled")
    assert (instance.device, instance.dtype) == ("cpu", torch.float16)
    with pytest.raises(ConfigError, match=r"rewards.mine.dtype=float15: .*did you mean 'float16'"):
        build("mine", "scaled", {"scale": 1.0, "dtype": "float15"}, "cpu")


def test_a_declaration_is_read_from_a_function_and_from_a_class(install: Install) -> None:
    install(
        brightness="brightness", scaled="Scaled", groups="faulty_plugins:WholeGroups", bare="undocumented"
    )
    assert Declaration.of(load_plugin("brightness")) == Declaration(
        "Mean grey level of an image.", (), (0, 255), "Apache-2.0"
    )
    assert Declaration.of(load_plugin("scaled")).requires == ("text",)
    assert Declaration.of(load_plugin("groups")).groupwise
    assert Declaration.of(load_plugin("bare")) == Declaration()


def test_bounds_of_any_number_are_plain_ones() -> None:
    plugin = type(
        "Plugin", (), {"range": (np.float32(0), Fraction(1, 2)), "__call__": lambda self, images: 0}
    )
    assert json.loads(json.dumps(declaration_to_json(Declaration.of(plugin))))["range"] == [0.0, 0.5]


@pytest.mark.parametrize("bounds", [(0.0, 0.5, 1.0), 1.0, ("0", 255), (1, 0), "01", {"light": 1.0}])
def test_malformed_bounds_are_named(bounds: Any) -> None:
    plugin = type("Plugin", (), {"range": bounds, "aspects": ("light",), "__call__": lambda self, images: 0})
    wrong = re.escape(repr(1.0 if isinstance(bounds, dict) else bounds))
    with pytest.raises(RewardError, match=rf"`range` is {wrong}. Expected the lowest and the highest"):
        Declaration.of(plugin)


def test_bounds_beyond_a_float_are_refused() -> None:
    plugin = type("Plugin", (), {"range": (0, Fraction(10**400)), "__call__": lambda self, images: 0})
    with pytest.raises(RewardError, match=r"`range` is .*Expected numbers that fit into a float"):
        Declaration.of(plugin)


@pytest.mark.parametrize("name", ["license", "citation"])
def test_what_is_shown_as_text_must_be_text(name: str) -> None:
    plugin = type("Plugin", (), {name: ("Apache-2.0", "MIT"), "__call__": lambda self, images: 0})
    with pytest.raises(RewardError, match=rf"`{name}` is \('Apache-2.0', 'MIT'\)\. Expected text"):
        Declaration.of(plugin)


def test_an_unknown_reward_is_named_with_the_nearest_one(install: Install) -> None:
    install(brightness="brightness", scaled="Scaled")
    with pytest.raises(ConfigError, match=r"no reward 'britness'.*did you mean 'brightness'.*scaled"):
        load_plugin("britness")


@pytest.mark.parametrize("value", ["absent_module:Reward", "sample_plugins:Absent"])
def test_a_plugin_that_cannot_be_imported_is_named(install: Install, value: str) -> None:
    install(broken=value)
    with pytest.raises(RewardError, match=rf"reward broken \({value}\) cannot be imported: .* Reinstall"):
        load_plugin("broken")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 1, "ofset": 2}, r"rewards.mine.ofset: no such option; did you mean 'offset'"),
        ({"scale": 1, "tmeout": 2}, r"rewards.mine.tmeout: no such option; did you mean 'timeout'"),
        ({"offset": 1}, r"rewards.mine.scale is missing"),
    ],
)
def test_wrong_options_are_named_before_anything_is_built(
    install: Install, options: dict[str, Any], message: str
) -> None:
    install(scaled="Scaled")
    with pytest.raises(ConfigError, match=message):
        build("mine", "scaled", options, "cpu")


@pytest.mark.parametrize("annotation", [str, "str", str | None, "str | None"])
@pytest.mark.parametrize("value", [1.1, 7, True])
def test_a_number_for_a_text_option_is_refused(annotation: Any, value: object) -> None:
    """Hydra has made it of `1.10`, say, and what was written is lost."""

    class Judge:
        def __init__(self, model, scale=1.0):  # type: ignore[no-untyped-def]
            pass

    Judge.__init__.__annotations__ |= {"model": annotation, "scale": float}
    with pytest.raises(
        ConfigError, match=rf"rewards\.mine\.model={value}: the reward takes text .*'rewards\.mine\.model=\""
    ) as error:
        check_options("rewards.mine", Judge, {"model": value})
    assert type(value).__name__ in str(error.value)
    check_options("rewards.mine", Judge, {"model": "1.10", "scale": value})


def test_a_function_takes_no_options(install: Install) -> None:
    install(brightness="brightness")
    with pytest.raises(ConfigError, match=r"rewards.mine.scale: no such option"):
        build("mine", "brightness", {"scale": 1}, "cpu")


def test_an_option_may_be_one_of_new(install: Install) -> None:
    install(new="ByNew")
    assert build("mine", "new", {"level": 3}, "cpu").call(batch()) == [3, 3, 3]
    with pytest.raises(ConfigError, match=r"rewards.mine.levle: no such option; did you mean 'level'"):
        build("mine", "new", {"levle": 3}, "cpu")


def test_a_host_key_that_the_constructor_needs_is_named() -> None:
    class Slow:
        def __init__(self, timeout: float, margin: float = 0.5) -> None:
            raise NotImplementedError

    with pytest.raises(RewardError, match=r"rewards.mine needs `timeout`, .* key of marble's own. Rename"):
        check_options("rewards.mine", Slow, {})


def test_a_constructor_may_take_any_option(install: Install) -> None:
    install(any="AnyOption")
    check_options("rewards.mine", load_plugin("any"), {"whatever": 1})
    assert build("mine", "any", {"whatever": 1}, "cpu").call(batch()) == [3, 3, 3]


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("two_unknown", r"reward mine has the parameters \(pictures, texts\)"),
        (
            "out_of_place",
            r"reward mine has the parameters \(prompts, texts, facts\).*first three, in their order",
        ),
        ("no_parameters", r"reward mine has the parameters \(level\)"),
        ("scripted", r"reward mine has no signature that Python knows"),
        ("not_callable", r"reward mine \(.*:not_callable\) is of type int\. Expected a class or a function"),
    ],
)
def test_an_object_that_cannot_be_called_as_a_reward_is_refused(
    install: Install, plugin: str, message: str
) -> None:
    install(mine=plugin)
    with pytest.raises(RewardError, match=message):
        build("mine", "mine", {}, "cpu")


def test_a_name_of_several_distributions_is_refused_unless_all_name_the_same_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def add(name: str, code: str) -> None:
        folder = tmp_path / name / f"{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[marble.rewards]\ntwin = {code}\n")
        monkeypatch.syspath_prepend(str(folder.parent))

    add("one", "math:exp")
    add("other", "math:exp")
    assert load_plugin("twin") is math.exp
    add("third", "math:log")
    with pytest.raises(
        ConfigError, match=r"reward twin is in several distributions: \w+ 1\.0, third 1\.0\. Un"
    ):
        load_plugin("twin")
    assert load_plugin("colorfulness")  # others are none the worse


@pytest.mark.parametrize(
    ("plugin", "options", "kind", "said"),
    [
        ("Unbuildable", {}, ConfigError, "OSError: its weights are missing"),
        ("Particular", {"level": 0}, ConfigError, "ValueError: level=0: expected 1 or more"),
        ("Particular", {"level": None}, RewardError, "TypeError: '<' not supported"),
    ],
)
def test_an_error_of_the_constructor_is_in_the_message(
    install: Install, plugin: str, options: dict[str, Any], kind: type[Exception], said: str
) -> None:
    install(mine=plugin)
    with pytest.raises(kind, match=f"reward mine could not be built: {said}"):
        build("mine", "mine", options, "cpu")
