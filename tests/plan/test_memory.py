"""The memory plan against what training really keeps; a model too large is refused before it is loaded."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from marble_cli.config.schema import RunConfig
from marble_cli.errors import RequestError
from marble_cli.plan import memory as planning
from marble_cli.plan.memory import check_memory, choose_checkpointing, free_memory, memory
from tests.plan.small_model import DECODING, DRAWING, SIZE

RunConfigMaker = Callable[..., RunConfig]


def test_it_counts_adapters_moments_average_and_gradients(run_config: RunConfigMaker) -> None:
    assert memory(run_config(), SIZE).trained == 4 * 10_000 * (2 + 2 + 1 + 4)
    assert memory(run_config("+rewards.third={plugin: colorfulness}"), SIZE).trained == 4 * 10_000 * 10
    assert memory(run_config("balance=weighted_sum"), SIZE).trained == 4 * 10_000 * 10, "the mixture's, too"


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


@pytest.mark.parametrize(("kind", "bytes_per_weight"), [("int8", 1), ("fp8", 1), ("nf4", 0.5 + 1 / 64)])
def test_rounded_weights_take_fewer_bytes(
    run_config: RunConfigMaker, kind: str, bytes_per_weight: float
) -> None:
    settings = f"model.quantization={kind}", "model.embedding_cache=cache"
    needed, plain = memory(run_config(*settings), SIZE), memory(run_config(settings[1]), SIZE)
    assert plain.frozen - needed.frozen == pytest.approx((4 - bytes_per_weight) * 800_000, abs=1)
    assert plain.encoders - needed.encoders == pytest.approx((4 - bytes_per_weight) * 100_000, abs=1)


def test_two_offloaded_blocks_are_on_the_device(run_config: RunConfigMaker) -> None:
    offloaded, plain = (memory(run_config(f"model.offload={kind}"), SIZE) for kind in ("blocks", "none"))
    assert (offloaded.offloaded, plain.offloaded) == (4 * 900_000, 0)
    assert plain.frozen - offloaded.frozen == 4 * (900_000 - 2 * 300_000)
    assert offloaded.trained == plain.trained
    single = replace(SIZE, blocks=1, in_blocks=300_000)
    saved = plain.frozen - memory(run_config("model.offload=blocks"), single).frozen
    assert saved == 0, "there are no two"


def test_offloaded_blocks_are_checkpointed(run_config: RunConfigMaker) -> None:
    for size in (SIZE, None):
        chosen = choose_checkpointing(run_config("model.offload=blocks"), size, torch.device("cpu"))
        assert chosen.on
        assert "with model.offload=blocks" in str(chosen)


def test_offloaded_blocks_of_all_processes_must_fit_into_the_cpus_memory(
    run_config: RunConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(planning, "free_memory", lambda device: 8_000_000 if device.type == "cpu" else 10**9)
    check_memory(run_config("model.offload=blocks", "launcher.nproc=2"), SIZE, device)
    with pytest.raises(RequestError, match=r"model\.offload=blocks keeps 10 MiB .* launcher\.nproc=3"):
        check_memory(run_config("model.offload=blocks", "launcher.nproc=3"), SIZE, device)
    monkeypatch.setattr(planning, "free_memory", lambda device: 10**9 if device.type == "cpu" else 1000)
    with pytest.raises(RequestError, match=r"are free\. Lower model\.lora\.rank"):
        check_memory(run_config("model.offload=blocks"), SIZE, device)


def test_checkpointing_is_chosen_if_activations_do_not_fit(
    run_config: RunConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, config = torch.device("cpu"), run_config("model.gradient_checkpointing=auto")
    needed = memory(run_config("model.gradient_checkpointing=false"), SIZE).peak
    for free, on in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(planning, "free_memory", lambda device, free=free: free)
        chosen = choose_checkpointing(config, SIZE, device)
        assert chosen.on is on
        assert "model.gradient_checkpointing=auto: kept, training needs about" in str(chosen)
        fixed = (run_config(f"model.gradient_checkpointing={choice}") for choice in ("true", "false"))
        assert [choose_checkpointing(config, SIZE, device).on for config in fixed] == [True, False]
        for choice in (True, False):
            decided = planning.Checkpointing(choice).applied(config)
            assert decided == run_config(f"model.gradient_checkpointing={str(choice).lower()}")
    assert not choose_checkpointing(config, None, device).on


def test_no_pass_is_counted_where_memory_is_ample(
    run_config: RunConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, config = torch.device("cpu"), run_config("model.gradient_checkpointing=auto")
    uncounted = replace(SIZE, count_cost=lambda: pytest.fail("a pass was counted"))
    monkeypatch.setattr(planning, "free_memory", lambda device: 2**40)
    check_memory(config, uncounted, device)
    assert not choose_checkpointing(config, uncounted, device).on


def test_activations_are_those_of_a_micro_batch(run_config: RunConfigMaker) -> None:
    """Four samples at once; with quantised layers, copies of their weights, of one block if checkpointed."""
    for on, kept, copied in (("false", 90_000, 4 * 800_000), ("true", 30_000, 800_000)):
        settings = f"model.gradient_checkpointing={on}", "trainer.micro_batch_size=4"
        for kind, copies in (("none", 0), ("int8", copied), ("fp8", copied), ("nf4", 0)):
            config = run_config(*settings, f"model.quantization={kind}")
            assert memory(config, SIZE).activations == 4 * kept + copies
    full = run_config("model.train=full", "model.precision=bf16", "model.gradient_checkpointing=false")
    assert memory(full, SIZE).activations == 4 * 90_000 + 2 * SIZE.trained


def test_images_are_drawn_when_activations_are_gone(run_config: RunConfigMaker) -> None:
    """A batch is decoded in parts of nearly equal size, after its velocities; the larger of all counts."""
    config = run_config("rollout.batch_size=4", "trainer.eval_every=0", "model.gradient_checkpointing=true")
    gpu, cpu = (memory(config, SIZE, device=device) for device in ("cuda", "cpu"))
    assert (gpu.drawing, cpu.drawing) == (2 * 5_000 + 4 * 100, 5_000 + 4 * 100)
    assert gpu.peak == cpu.peak
    large = replace(SIZE, drawing=replace(DRAWING, decoding=replace(DECODING, decoded=10**8)))
    less = memory(config, large).peak - gpu.peak
    assert less == pytest.approx(1.1 * (4 * 10**8 + 10_000 - gpu.activations), abs=2)
    judged = replace(SIZE, judged=replace(DRAWING, decoding=replace(DECODING, decoded=300)))
    evaluated = ("trainer.eval_every=1", "evaluation.batch_size=9")
    config = run_config("rollout.batch_size=4", *evaluated)
    assert memory(config, judged).drawing == 3 * 5_000 + 9 * 300
    slow = replace(SIZE, judged=replace(DRAWING, count_velocity=lambda: 2_000))
    assert memory(config, slow).drawing == 9 * 2_000


def test_drawing_does_not_turn_checkpointing_on(
    run_config: RunConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, device = run_config("model.gradient_checkpointing=auto"), torch.device("cpu")
    enough = memory(run_config("model.gradient_checkpointing=false"), SIZE).peak
    monkeypatch.setattr(planning, "free_memory", lambda device: enough)
    large = replace(SIZE, most_kept=2**40, drawing=replace(DRAWING, count_velocity=lambda: 10**9))
    assert not choose_checkpointing(config, large, device).on


def test_free_memory_is_known() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 2**20


def test_a_model_too_large_is_refused_before_it_is_loaded(
    run_config: RunConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config()
    check_memory(config, SIZE, torch.device("cpu"))
    monkeypatch.setattr(planning, "free_memory", lambda device: 1000)
    with pytest.raises(RequestError, match=r"about 6 MiB on cpu .* lower model\.lora\.rank"):
        check_memory(config, SIZE, torch.device("cpu"))
    with pytest.raises(
        RequestError,
        match=r"Train a LoRA \(model\.train=lora\), share it among more processes "
        r"\(trainer\.parallel=fsdp\), use",
    ):
        check_memory(run_config("model.train=full"), SIZE, torch.device("cpu"))
    check_memory(run_config("model.path=nobody/nothing"), None, torch.device("cpu"))


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
