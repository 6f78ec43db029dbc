"""Installed rewards keep the plugin contract on this device, and score there as on the CPU.

Plugins whose weights are not part of their distribution get the small random models of their own tests.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from marble_cli.plugins import installed
from marble_cli.rewards.api import Batch
from marble_cli.rewards.conformance import Outcome, run_checks
from marble_cli.rewards.registry import Reward, build, load_plugin, parameters
from marble_cli.rewards.testing.samples import sample_batch

PLUGINS = Path(__file__).parents[2] / "plugins"
Options = dict[str, Any]


def tiny_models(file: str) -> Any:
    """Import the module that writes a plugin's small random models."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, PLUGINS / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def aesthetic(folder: Path) -> Options:
    models = tiny_models("marble-reward-clip/tests/tiny_models.py")
    (folder / "clip").mkdir()
    models.write_clip(folder / "clip")
    models.write_predictor(folder / "predictor", clip=folder / "clip")
    return {"model": str(folder / "clip"), "predictor": str(folder / "predictor")}


def geneval(folder: Path) -> Options:
    models = tiny_models("marble-reward-geneval/tests/tiny_geneval.py")
    (folder / "clip").mkdir()
    (folder / "detector").mkdir()
    clip, detector = models.write_clip(folder / "clip"), models.write_mask2former(folder / "detector")
    models.label_for_examples(detector)
    return {"detector": str(detector), "clip": str(clip)}


def imagereward(folder: Path) -> Options:
    tiny_models("marble-reward-imagereward/tests/tiny_models.py").write_imagereward(folder)
    return {"model": str(folder)}


def preservation(folder: Path) -> Options:
    tiny_models("marble-reward-preservation/tests/tiny_models.py").write_dino(folder)
    return {"model": str(folder), "side": 56}


def hpsv3(folder: Path) -> Options:
    tiny_models("marble-reward-hpsv3/tests/tiny_models.py").write_hpsv3(folder)
    return {"model": str(folder), "base": str(folder)}


def editreward(folder: Path) -> Options:
    tiny_models("marble-reward-editreward/tests/tiny_models.py").write_editreward(folder)
    return {"model": str(folder), "base": str(folder)}


def embedded(folder: Path) -> Options:
    return {"model": "tiny"}


def none(folder: Path) -> Options:
    return {}


OPTIONS: dict[str, Callable[[Path], Options]] = {
    "colorfulness": none,
    "compressibility": none,
    "ocr": none,
    "objects": none,
    "clipscore": embedded,
    "pickscore": embedded,
    "hpsv2": embedded,
    "aesthetic": aesthetic,
    "hpsv3": hpsv3,
    "editreward": editreward,
    "preservation": preservation,
    "imagereward": imagereward,
    "geneval": geneval,
}
METADATA = {"geneval": {"tag": "counting", "include": [{"class": "person", "count": 1}]}}
here = [name for name in OPTIONS if name in installed()]


def samples(reward: Reward) -> Batch:
    """Return the sample batch, with metadata that the embedded prompts lack."""
    declaration = reward.declaration
    batch = sample_batch(declaration.requires, conditions=declaration.takes_conditions)
    given = METADATA.get(reward.name)
    return batch._replace(metadata=[given] * len(batch.prompts)) if given else batch


@pytest.mark.parametrize("name", here)
def test_scores_are_those_of_the_cpu(name: str, tmp_path: Path, device: torch.device) -> None:
    options = OPTIONS[name](tmp_path)
    takes_device = "device" in parameters(load_plugin(name))

    def moved() -> Any:
        return build(name, name, options, str(device))

    reward = build(name, name, options, "cpu")
    try:
        gpu = moved if takes_device else "its constructor takes no device"
        checks = run_checks(reward, samples(reward), gpu)
    finally:
        reward.close()
    assert {check.name: check.detail for check in checks if check.outcome is Outcome.FAIL} == {}
    outcomes = {check.name: check.outcome for check in checks}
    expected = Outcome.PASS if takes_device else Outcome.SKIPPED
    assert outcomes["same on another device"] is expected


@pytest.mark.parametrize("name", here)
def test_contract_is_kept_on_this_device(name: str, tmp_path: Path, device: torch.device) -> None:
    """Scores do not depend on the batch or its order, and two calls agree exactly."""
    if "device" not in parameters(load_plugin(name)):
        return  # it computes where it likes
    reward = build(name, name, OPTIONS[name](tmp_path), str(device))
    try:
        checks = run_checks(reward, samples(reward))
    finally:
        reward.close()
    assert {check.name: check.detail for check in checks if check.outcome is Outcome.FAIL} == {}
