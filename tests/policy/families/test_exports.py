"""An exported LoRA acts as trained in diffusers, peft and ComfyUI, for every family."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export
from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.errors import RequestError
from marble_cli.policy.load import load_policy
from marble_cli.run.build import build_optimizer
from marble_cli.run.state import initial_progress, pack
from tests.policy.families.cases import Case, load_plain
from tests.policy.families.pipelines import ONE_UNET

pytestmark = pytest.mark.parametrize("case", ONE_UNET, indirect=True)


@pytest.fixture(scope="session")
def policy(case: Case) -> Any:
    """The family's policy with another scale: alpha / rank is 1.5."""
    return load_policy(replace(case.model, lora=replace(case.model.lora, rank=2, alpha=3)), 0)


@pytest.fixture(scope="session")
def trained(
    case: Case,
    policy: Any,
    run_config: Callable[..., RunConfig],
    randomise: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run's folder with one checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("trained")
    config = run_config(*case.overrides, f"run.dir={folder}")
    config.model = policy.model
    randomise(policy, seed=1)
    progress = initial_progress(policy)
    progress.step = 1
    randomise(policy, seed=2)
    store.save(folder, *pack(policy, build_optimizer(config, policy), progress), keep_last=1, best=False)
    (folder / "config.yaml").write_text(dump(config))
    return folder


@torch.no_grad()
def velocity(case: Case, network: nn.Module) -> Tensor:
    """By the policy's own way to call a network, with `network` in the place of its own."""
    pipeline = case.policy.pipeline
    own = getattr(pipeline, case.network)
    setattr(pipeline, case.network, network)
    try:
        return case.policy.family.velocity(case.start(), case.times, case.encode(case.policy))
    finally:
        setattr(pipeline, case.network, own)


@pytest.fixture(scope="session")
@torch.no_grad()
def expected(case: Case, policy: Any, trained: Path) -> dict[str, Tensor]:
    """Return the velocities of the trained weights, `lora`, and of their average, `ema`."""
    _, *states = store.load(store.resolve(str(trained)))
    at, result = (case.start(), case.times, case.encode(policy)), {}
    for name, state in zip(("lora", "ema"), states, strict=True):
        policy.load_trained(state)
        result[name] = policy.velocity(*at, "trained")
        assert (result[name] - policy.velocity(*at, None)).abs().max() > 0.01
    assert (result["lora"] - result["ema"]).abs().max() > 0.01
    return result


def plain_network(case: Case) -> Any:
    """Return a copy of the plain network that a test may change."""
    return copy.deepcopy(getattr(case.plain, case.network)).eval()


def merged(case: Case, file: Path, prefix: str) -> Any:
    """A loader that knows nothing of alpha, ranks or headers: W + B @ A."""
    network, tensors = plain_network(case), load_file(file)
    weights = dict(network.named_parameters())
    layers = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    assert tensors.keys() == {f"{layer}.lora_{part}.weight" for layer in layers for part in "AB"}
    for layer in layers:
        product = tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
        weights[f"{layer.removeprefix(prefix)}.weight"].data += product
    return network


def assert_same_velocity(case: Case, network: nn.Module, expected: Tensor) -> None:
    """In norm: a merged weight, and s B A x added to W x, round single elements differently."""
    difference = (velocity(case, network) - expected).norm() / expected.norm()
    case.record("exports", difference)
    assert difference < 1e-6


def test_export_loaded_by_diffusers_acts_as_trained(
    case: Case, trained: Path, expected: dict[str, Tensor], tmp_path: Path
) -> None:
    """With its header and without."""
    file = export(str(trained), tmp_path)
    assert file == tmp_path / "pytorch_lora_weights.safetensors"
    assert file.read_bytes() == next(trained.glob("checkpoints/*/ema/*")).read_bytes()
    pipeline = load_plain(case.model.path)
    for _ in range(2):
        pipeline.load_lora_weights(tmp_path)
        assert_same_velocity(case, getattr(pipeline, case.network), expected["ema"])
        pipeline.unload_lora_weights()
        save_file(load_file(file), file)


def test_export_loaded_by_peft_acts_as_trained(
    case: Case, trained: Path, expected: dict[str, Tensor], tmp_path: Path
) -> None:
    file = export(str(trained), tmp_path, ExportFormat.peft)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert_same_velocity(case, PeftModel.from_pretrained(plain_network(case), tmp_path), expected["ema"])
    assert_same_velocity(case, merged(case, file, "base_model.model."), expected["ema"])


def test_export_for_comfyui_acts_as_trained_or_is_refused(
    case: Case, trained: Path, expected: dict[str, Tensor], tmp_path: Path
) -> None:
    if case.tiny.choice in ("sana", "lumina2", "flux2", "flux2_klein", "wan"):
        family = case.policy.provenance()["family"]
        with pytest.raises(RequestError, match=rf"ComfyUI's loader does not map a LoRA of {family} "):
            export(str(trained), tmp_path / "comfyui", ExportFormat.comfyui)
        assert not (tmp_path / "comfyui").exists()
        return
    file = export(str(trained), tmp_path, ExportFormat.comfyui)
    if case.network == "unet":
        save_file(by_layers(case, load_file(file)), file)
    assert_same_velocity(case, merged(case, file, f"{case.network}."), expected["ema"])


def by_layers(case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo kohya's names, lora_unet_LAYER.lora_down.weight with `_` for every dot of the layer."""
    layers = {f"lora_unet_{name.replace('.', '_')}": name for name, _ in case.plain.unet.named_modules()}
    parts = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    split = {key: key.split(".", 1) for key in tensors}
    return {f"unet.{layers[split[key][0]]}.{parts[split[key][1]]}": value for key, value in tensors.items()}


def test_checkpoint_files_act_as_trained_without_alpha(
    case: Case, trained: Path, expected: dict[str, Tensor]
) -> None:
    for name in ("lora", "ema"):
        (file,) = trained.glob(f"checkpoints/*/{name}/pytorch_lora_weights.safetensors")
        assert_same_velocity(case, merged(case, file, f"{case.network}."), expected[name])
