"""Runs on quantised layers: resumed exactly, exported as ordinary LoRAs, refused where they cannot work."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export
from marble_cli.config.enums import Quantization
from marble_cli.config.schema import ModelConfig, RunConfig
from marble_cli.errors import ConfigError, RequestError
from marble_cli.plan.plan import plan
from marble_cli.policy.load import load_policy
from marble_cli.run.train import train
from tests.run.runs import SETTINGS, assert_same_run, copied

RunConfigMaker = Callable[..., RunConfig]
PACKAGES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}


@pytest.mark.parametrize("kind", PACKAGES)
def test_resumed_run_is_exact_and_its_export_fits_the_plain_model(
    run_config: RunConfigMaker, tmp_path: Path, kind: str
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = (*SETTINGS, f"model.quantization={kind}", "trainer.steps=4", "optimizer.lr=0.1")
    assert train(run_config(f"run.dir={whole}", *settings), resume="auto") == 0
    copied(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-00000004")
    config = run_config(f"run.dir={cut}", *settings)
    assert train(config, resume="auto") == 0
    assert_same_run(cut, whole)

    file = export(str(whole), tmp_path / "exported")
    average = store.load(store.resolve(str(whole)))[2]
    rounded: Any = load_policy(config.model, seed=0)
    rounded.load_trained(average)
    noise = torch.randn(2, *rounded.latent_shape, generator=torch.Generator().manual_seed(0))
    xt, t = noise.to(rounded.device), torch.ones(2, device=rounded.device)
    with torch.no_grad():
        at = (xt, t, rounded.encode(["a red cup", "a boat"]))
        base, near = (rounded.velocity(*at, adapter) for adapter in (None, "trained"))
        fresh = SD3Transformer2DModel.from_pretrained(config.model.path, subfolder="transformer")
        fresh.load_lora_adapter(load_file(file), prefix="transformer")
        fresh.to(rounded.device)
        pooled, tokens = at[2].tensors["pooled"], at[2].tensors["tokens"]
        exported = fresh(
            hidden_states=xt,
            timestep=t * 1000,
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
    assert (exported - base).norm() > 0.05 * base.norm()
    assert (exported - near).norm() < 0.5 * (exported - base).norm()


def test_embeddings_of_quantised_encoders_have_files_of_their_own(model: ModelConfig, tmp_path: Path) -> None:
    cached = replace(model, embedding_cache=str(tmp_path))
    policies = {kind: load_policy(replace(cached, quantization=kind), seed=0) for kind in Quantization}
    files = {policy.cache.file("a red cup") for policy in policies.values() if policy.cache}
    assert len(files) == len(Quantization)
    for policy in policies.values():
        policy.prepare(["a red cup"])
        direct = load_policy(replace(policy.model, embedding_cache=None), seed=0).encode(["a red cup"])
        for name, tensor in policy.encode(["a red cup"]).tensors.items():
            assert tensor.equal(direct.tensors[name])
    assert all(file.is_file() for file in files)


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_missing_package_is_told_before_anything_is_loaded(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[kind], None)
    config = run_config(f"model.quantization={kind}", f"run.dir={tmp_path / 'run'}")
    for attempt in (plan, lambda config: train(config, resume="auto")):
        with pytest.raises(RequestError, match=rf"{kind} needs {PACKAGES[kind]}.*marble-cli\[small\]"):
            attempt(config)


@pytest.mark.parametrize("other", ["model.train=full", "trainer.parallel=fsdp"])
def test_it_is_refused_with_trained_or_sharded_weights(run_config: RunConfigMaker, other: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.quantization=int8.*{other}"):
        run_config("model.quantization=int8", other)
