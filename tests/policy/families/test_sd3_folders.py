"""SD3 folders that are damaged or unknown are refused by name; computed sizes are the real ones."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from marble_cli.config.enums import Precision
from marble_cli.config.schema import ModelConfig
from marble_cli.errors import RequestError
from marble_cli.policy.load import load_policy
from marble_cli.policy.size import model_size
from marble_cli.policy.source import DTYPES


def test_folder_without_a_pipeline_is_refused_by_name(model: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no model_index.json") as error:
        load_policy(replace(model, path=str(tmp_path)), 0)
    assert str(tmp_path) in str(error.value)


def test_hub_id_that_cannot_be_reached_is_refused(model: ModelConfig) -> None:
    with pytest.raises(RequestError, match="model.path=nobody/nothing could not be loaded"):
        load_policy(replace(model, path="nobody/nothing"), 0)


def test_pipeline_of_unknown_class_is_refused(
    model: ModelConfig, pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(pipeline_folder, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "LuminaPipeline"}))
    for look in (lambda m: load_policy(m, 0), model_size):
        with pytest.raises(RequestError, match=r"is a LuminaPipeline.*StableDiffusion3Pipeline"):
            look(replace(model, path=str(folder)))


@pytest.mark.parametrize("precision", list(Precision))
def test_computed_sizes_equal_those_of_the_loaded_model(model: ModelConfig, precision: Precision) -> None:
    chosen = replace(model, precision=precision)
    policy: Any = load_policy(chosen, 0)
    size = model_size(chosen)
    assert size is not None
    adapter = sum(p.numel() for p in policy.parameters("trained").values())
    assert size.trained == adapter
    assert size.network == sum(p.numel() for p in policy.network.parameters()) - 2 * adapter
    assert size.tokens == 4
    parts = [
        policy.pipeline.vae,
        policy.network,
        policy.pipeline.text_encoder,
        policy.pipeline.text_encoder_2,
    ]
    own = {id(p) for a in ("trained", "behaviour") for p in policy.parameters(a).values()}
    held = sum(p.numel() * p.element_size() for m in parts for p in m.parameters() if id(p) not in own)
    whole = (size.network + size.vae + size.encoders) * DTYPES[precision].itemsize
    assert whole == pytest.approx(held, rel=0.01)


def _cut(folder: Path, part: str) -> None:
    file = next((folder / part).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])


def _without(folder: Path, part: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    del index[part]
    (folder / "model_index.json").write_text(json.dumps(index))


def _of_class(folder: Path, name: str) -> None:
    text = (folder / "model_index.json").read_text()
    (folder / "model_index.json").write_text(text.replace("SD3Transformer2DModel", name))


@pytest.mark.parametrize(
    ("damage", "named", "weights"),
    [
        (lambda folder: (folder / "model_index.json").write_text("{"), "is not valid JSON", False),
        (lambda folder: (folder / "model_index.json").write_text("[1]"), "holds no JSON object", False),
        (lambda folder: (folder / "vae" / "config.json").unlink(), "vae", False),
        (lambda folder: _without(folder, "transformer"), "transformer", False),
        (lambda folder: _of_class(folder, "NoSuchModel"), "NoSuchModel", False),
        (lambda folder: _cut(folder, "transformer"), "diffusion_pytorch_model.safetensors", True),
        (lambda folder: _cut(folder, "text_encoder"), "", True),
    ],
)
def test_damaged_folder_is_refused_by_name(
    model: ModelConfig,
    pipeline_folder: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    named: str,
    weights: bool,
) -> None:
    """Plans refuse the folder too, unless only weights are damaged."""
    folder = tmp_path / "damaged"
    shutil.copytree(pipeline_folder, folder)
    damage(folder)
    model = replace(model, path=str(folder))
    for look in (
        (lambda: load_policy(model, 0),)
        if weights
        else (lambda: load_policy(model, 0), lambda: model_size(model))
    ):
        with pytest.raises(
            RequestError, match=rf"model\.path=.*could not be loaded.*{named}.*(?<!\.)\. Expected"
        ):
            look()


def test_resolution_beyond_the_positions_is_refused(model: ModelConfig) -> None:
    for look in (model_size, lambda model: load_policy(model, 0)):
        with pytest.raises(
            RequestError, match=r"model\.resolution=4096: expected at most \d+ for this model"
        ):
            look(replace(model, resolution=4096))


def test_sizes_of_a_model_elsewhere_are_none(model: ModelConfig) -> None:
    assert model_size(replace(model, path="nobody/nothing")) is None
