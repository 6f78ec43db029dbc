"""The memory plan against what training really keeps, and what is said where memory runs out."""

import errno
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from marble_cli.config.schema import RunConfig
from marble_cli.errors import DeviceMemoryError, RequestError, RewardError
from marble_cli.plan import memory as planning
from marble_cli.plan.memory import check_memory, free_memory, memory
from marble_cli.policy.base import ModelSize
from marble_cli.policy.load import load_policy
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.policy.size import model_size
from marble_cli.run.checkpoints import Checkpoints
from marble_cli.run.loop import SMALLER_ROLLOUT
from marble_cli.run.shortage import bounded
from marble_cli.run.train import train
from marble_cli.step.direction import Descent

SIZE = ModelSize(
    transformer=1_000_000,
    trained=10_000,
    tokens=16,
    frozen_bytes=5_000_000,
    encoder_bytes=700_000,
    blocks=4,
    features=100,
)

RunConfigMaker = Callable[..., RunConfig]


def test_it_counts_adapters_moments_average_and_gradients(run_config: RunConfigMaker) -> None:
    assert memory(run_config(), SIZE).trained == 4 * 10_000 * (2 + 2 + 1 + 4)
    assert memory(run_config("+rewards.third={plugin: colorfulness}"), SIZE).trained == 4 * 10_000 * 10


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


def test_an_allocation_that_fails_says_what_to_do() -> None:
    said = r"out of memory in the rollout of step 3: .* Lower rollout"
    with pytest.raises(DeviceMemoryError, match=said), bounded("in the rollout of step 3", "Lower rollout"):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(DeviceMemoryError, match="here: CUDA out of memory"), bounded("here", ""):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")


NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled "
CUDA = "CUDA kernel errors might be asynchronously reported at some other API call"


def accelerator(text: str) -> Exception:
    """As torch raises what CUDA's runtime says."""
    return torch.AcceleratorError(f"CUDA error: {text}\n{CUDA}")


class CppCompileError(RuntimeError):
    """As of torch._inductor.exc, which takes seconds to import."""


SHORTAGES = {
    "the allocator of CUDA": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"
    ),
    "of HIP": torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB."),
    "of a GPU that has no text": torch.OutOfMemoryError(),
    "of MPS": RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB, other allocations: 1.12 GB)"),
    "of the CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1152921504606846976 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "of the CPU, elsewhere": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried to"
    ),
    "CUDA beside the allocator": accelerator("out of memory"),
    "CUDA before AcceleratorError": RuntimeError(f"CUDA error: out of memory\n{CUDA}"),
    "the driver": RuntimeError("CUDA driver error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN 8": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cuSOLVER": RuntimeError(
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"
    ),
    "cuFFT": RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    "hipBLAS": RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    "Triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "NCCL's communicator": dist.DistBackendError(
        f"{NCCL}cuda error, NCCL version 2.28.9\nncclUnhandledCudaError: Call to CUDA "
        "function failed.\nLast error:\nCuda failure 2 'out of memory'"
    ),
    "NCCL's buffers": dist.DistBackendError(
        f"{NCCL}cuda error\nncclUnhandledCudaError\nLast error:\nFailed to CUDA calloc async 24576 bytes"
    ),
    "a compiler's benchmark": type("InductorError", (RuntimeError,), {})(
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB."
    ),
    "Python": MemoryError(),
    "numpy": MemoryError("Unable to allocate 1.00 EiB for an array with shape (1152921504606846976,)"),
    "C++": RuntimeError("std::bad_alloc"),
    "a file that is mapped": RuntimeError(
        "unable to mmap 9 bytes from file </w.safetensors>: Cannot allocate memory (12)"
    ),
    "a process that is started": OSError(errno.ENOMEM, "Cannot allocate memory"),
}
OTHERS = {
    "a device-side assert": accelerator("device-side assert triggered"),
    "an illegal access": accelerator("an illegal memory access was encountered"),
    "no kernel": accelerator("no kernel image is available for execution on the device"),
    "a lost peer": dist.DistBackendError(
        f"{NCCL}system error\nncclRemoteError: A call failed possibly due to a network error or a remote "
        "process exiting prematurely.\nLast error:\nsocketProgress: Connection closed by remote peer"
    ),
    "/dev/shm": dist.DistBackendError(
        f"{NCCL}system error\nLast error:\nError while creating shared memory segment /dev/shm/nccl-x"
    ),
    "a watchdog": dist.DistBackendError(
        "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE"
    ),
    "a store": dist.DistStoreError("wait timeout after 7200000ms, keys: /default_pg/0//cpu//0/0"),
    "gloo": RuntimeError(
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5"
    ),
    "no C compiler": RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
    "a C++ compiler's fault": CppCompileError(
        "C++ compile error\n\nOutput:\nfatal error: Python.h: No such file"
    ),
    "shared memory of a kernel": RuntimeError(
        "out of resource: shared memory, Required: 262144, Hardware limit: 232448."
    ),
    "cuBLAS without a device": RuntimeError(
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
    ),
    "an operator that is missing": NotImplementedError("operator not implemented for CUDA"),
    "depth": RecursionError("maximum recursion depth exceeded"),
    "shapes": RuntimeError(
        "The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 1"
    ),
    "storage": RuntimeError("Trying to create tensor with negative dimension -1"),
    "a disk": OSError(errno.ENOSPC, "No space left on device"),
    "a value": ValueError("CUDA out of memory is what this text says"),
    "the run's own": RewardError("reward ocr failed on 9 images: OutOfMemoryError: CUDA out of memory"),
}


@pytest.mark.parametrize("error", SHORTAGES.values(), ids=SHORTAGES)
def test_a_shortage_of_memory_is_called_one(error: Exception) -> None:
    reason = re.escape(str(error).splitlines()[0] if str(error) else type(error).__name__)
    said = rf"^out of memory in an evaluation: {reason} Lower rollout.batch_size; then resume the run with"
    with pytest.raises(DeviceMemoryError, match=said) as caught, bounded("in an evaluation", SMALLER_ROLLOUT):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", OTHERS.values(), ids=OTHERS)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, bounded("in an evaluation", SMALLER_ROLLOUT):
        raise error
    assert caught.value is error


def test_the_first_trial_of_the_rewards_says_what_to_do(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(self: PipelinePolicy, x0: Tensor) -> Tensor:
        return torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(PipelinePolicy, "decode", greedy)
    said = "out of memory when the rewards were first tried: .* Free the device, or have rewards compute else"
    with pytest.raises(DeviceMemoryError, match=said):
        train(run_config(f"run.dir={tmp_path}"), resume="auto")


def test_a_run_that_runs_out_goes_on_with_smaller_batches(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(f"run.dir={tmp_path}", "trainer.checkpoint_every=9")
    direct = Descent.direct

    def greedy(self: Descent, number: int, *rest: Any) -> Any:
        if number == 2:
            torch.empty(2**60, dtype=torch.uint8)
        return direct(self, number, *rest)

    monkeypatch.setattr(Descent, "direct", greedy)
    with pytest.raises(
        DeviceMemoryError, match=r"the training of step 2: .* Lower trainer\.micro_batch_size"
    ):
        train(config, resume="auto")
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-00000001"
    monkeypatch.setattr(Descent, "direct", direct)
    smaller = run_config(f"run.dir={tmp_path}", "trainer.checkpoint_every=9", "trainer.micro_batch_size=2")
    assert train(smaller, resume="auto") == 0
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-00000002"


def test_what_ran_out_is_let_go_before_a_checkpoint_is_made(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations of the step that failed would still fill the device."""
    held: list[weakref.ref[Tensor]] = []
    direct, pack = Descent.direct, Checkpoints.pack

    def greedy(self: Descent, number: int, *rest: Any) -> Any:
        if number == 2:
            activations = torch.ones(9)
            held.append(weakref.ref(activations))
            torch.empty(2**60, dtype=torch.uint8)
        return direct(self, number, *rest)

    def packed(self: Checkpoints) -> Any:
        assert held[0]() is None
        return pack(self)

    monkeypatch.setattr(Descent, "direct", greedy)
    monkeypatch.setattr(Checkpoints, "pack", packed)
    with pytest.raises(DeviceMemoryError, match="the training of step 2"):
        train(run_config(f"run.dir={tmp_path}", "trainer.checkpoint_every=9"), resume="auto")
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-00000001"


def test_a_checkpoint_without_room_hides_no_error(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = Descent.direct

    def greedy(self: Descent, number: int, *rest: Any) -> Any:
        if number == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return direct(self, number, *rest)

    def pack(self: Checkpoints) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 MiB.")

    monkeypatch.setattr(Descent, "direct", greedy)
    monkeypatch.setattr(Checkpoints, "pack", pack)
    with pytest.raises(DeviceMemoryError, match=r"the training of step 2: CUDA .* 2\.00 GiB\. Lower trainer"):
        train(run_config(f"run.dir={tmp_path}", "trainer.checkpoint_every=9"), resume="auto")
    log = (tmp_path / "log.txt").read_text()
    assert (
        "checkpointing step 1 on the way out failed too: out of memory while the last step was checkpointed: "
        "CUDA out of memory" in log
    )


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
