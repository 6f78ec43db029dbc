"""The memory plan against what training really keeps; a model too large is refused before it is loaded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.config.schema import RunConfig
from marble_cli.errors import RequestError
from marble_cli.plan import memory as planning
from marble_cli.plan.memory import check_memory, free_memory, memory
from marble_cli.policy.load import load_policy
from marble_cli.policy.size import model_size
from tests.plan.small_model import SIZE

RunConfigMaker = Callable[..., RunConfig]


def test_it_counts_adapters_moments_average_and_gradients(run_config: RunConfigMaker) -> None:
    assert memory(run_config(), SIZE).trained == 4 * 10_000 * (2 + 2 + 1 + 4)
    assert memory(run_config("+rewards.third={plugin: colorfulness}"), SIZE).trained == 4 * 10_000 * 10


def test_moments_of_8_bits_take_a_quarter(run_config: RunConfigMaker) -> None:
    saved = memory(run_config(), SIZE).trained - memory(run_config("optimizer=adamw8bit"), SIZE).trained
    assert saved == pytest.approx(10_000 * (8 - 2 - 2 * 4 / 256), abs=1)


def test_all_weights_are_trained_beside_the_frozen_ones(run_config: RunConfigMaker) -> None:
    size = replace(SIZE, trained=1_000_000)
    assert memory(run_config("model.train=full"), size).trained == 4 * 1_000_000 * (2 + 2 + 1 + 4)
    assert memory(run_config("model.train=full"), size).frozen == 5_700_000


def test_text_encoders_stay_unless_embeddings_are_cached(run_config: RunConfigMaker) -> None:
    staying, cached = (
        memory(run_config(f"model.embedding_cache={folder}"), SIZE) for folder in ("null", "cache")
    )
    assert (staying.frozen, staying.encoders) == (5_700_000, 0)
    assert (cached.frozen, cached.encoders) == (5_000_000, 700_000)
    assert staying.least == 5_700_000 + staying.trained
    assert cached.least == 5_700_000


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_about_what_a_training_pass_keeps(
    run_config: RunConfigMaker, transformer_folder: Path, checkpointing: bool, train: str
) -> None:
    config = run_config(
        f"model.path={transformer_folder}",
        "model.resolution=64",
        "model.lora.rank=4",
        "trainer.micro_batch_size=4",
        "model.precision=bf16",
        "rollout.groups=4",
        f"model.gradient_checkpointing={checkpointing}",
        f"model.train={train}",
    )
    policy: Any = load_policy(config.model, seed=0)
    policy.trainable.activate("trained")
    weights = {p.untyped_storage().data_ptr() for p in policy.pipeline.transformer.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, or its address would be used again
        return tensor

    xt, embeddings = torch.randn(4, *policy.latent_shape), policy.encode(["a red cup"] * 4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.velocity(xt, torch.full((4,), 0.5), embeddings, "trained")
    size = model_size(config.model)
    assert size is not None
    planned = memory(config, size).activations
    real = sum(count for count, _ in kept.values())
    if checkpointing:  # one block's are kept besides while it is gone through
        assert (
            real
            < planned
            < memory(
                replace(config, model=replace(config.model, gradient_checkpointing=False)), size
            ).activations
        )
    else:
        assert 0.6 < planned / real < 1.7


@pytest.fixture(scope="session")
def transformer_folder(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Path:
    """The random pipeline with a transformer of six blocks of width 128."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    folder = tmp_path_factory.mktemp("larger")
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        pipeline_folder, text_encoder_3=None, tokenizer_3=None
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline.transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=6,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=16,
            caption_projection_dim=128,
            pooled_projection_dim=16,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
            dual_attention_layers=(0, 1, 2),
        )
    pipeline.save_pretrained(folder)
    return folder


def test_free_memory_is_known() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 2**20


def test_a_model_too_large_is_refused_before_it_is_loaded(
    run_config: RunConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config()
    check_memory(config, torch.device("cpu"))
    monkeypatch.setattr(planning, "free_memory", lambda device: 1000)
    with pytest.raises(RequestError, match=r"needs about 0 MiB on cpu .* Lower model\.lora\.rank"):
        check_memory(config, torch.device("cpu"))
    with pytest.raises(
        RequestError,
        match=r"Train a LoRA \(model\.train=lora\), share it among more processes "
        r"\(trainer\.parallel=fsdp\), use",
    ):
        check_memory(run_config("model.train=full"), torch.device("cpu"))
    check_memory(run_config("model.path=nobody/nothing"), torch.device("cpu"))


def test_shards(run_config: RunConfigMaker) -> None:
    """Eight processes, four a copy; float32.

    4 MB of the frozen weights are the transformer's, in four blocks.
    """
    settings = ("rollout.groups=8", "launcher.nproc=8", "trainer.parallel=fsdp", "trainer.fsdp.replicas=2")
    rest, transformer = 5_700_000 - 4_000_000, 4_000_000
    sharded, kept = (
        memory(run_config(*settings, f"trainer.fsdp.reshard={on}"), SIZE) for on in (True, False)
    )
    assert sharded.frozen == rest + transformer // 4 + transformer // 2
    assert kept.frozen == rest + transformer // 4 + transformer
    assert sharded.trained == 4 * 10_000 * 2 + 4 * 10_000 * (2 + 2 + 1 + 2) // 4
    full = memory(run_config(*settings, "model.train=full"), replace(SIZE, trained=1_000_000))
    assert full.trained == 4 * 1_000_000 * (2 + 2 + 1 + 4) // 4
