"""Check in about a minute that a GPU computes what the CPU does, with the embedded model.

A short form of `make test-gpu` for a user's machine. Every check has a reference of its own: the CPU, the
device's float32, or float64.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from marble_cli.config.compose import compose
from marble_cli.config.enums import Precision
from marble_cli.distributed.layout import Replicated
from marble_cli.distributed.ranks import Ranks
from marble_cli.doctor.finding import Finding, check
from marble_cli.objective.coefficients import Coefficients
from marble_cli.policy.load import load_policy
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.seeds import generator, noise
from marble_cli.step.batches import TrainingSet, chunks
from marble_cli.step.gradients import reward_gradients
from marble_cli.step.passes import Objective, Step

PROMPTS = ("a red circle", "a blue square", "a green star", "two yellow triangles")
# The largest relative distances of gradients in half precision from those in float32.
NEAR = {Precision.bf16: 0.5, Precision.fp16: 0.1}
HEADS = ((1024, 64), (1357, 64), (320, 128))  # tokens of an image, alone and with text, and size of a head


def examine_gpu(device: torch.device | None = None) -> list[Finding]:
    """Run every check on a device, this process's GPU by default; a failed check becomes a finding."""
    if device is None:
        if not torch.cuda.is_available():
            return [Finding("GPU", False, "torch finds none; it needs its CUDA build and a driver")]
        device = torch.device("cuda", torch.cuda.current_device())
    model = _Model(device)
    checks: dict[str, Callable[[], str]] = {
        "memory": lambda: _memory(device),
        "float32": model.check_float32,
        "bfloat16": lambda: model.check_half(Precision.bf16),
        "float16": lambda: model.check_half(Precision.fp16),
        "attention": lambda: _attention(device),
        "out of memory": lambda: _out_of_memory(device),
        "a run": lambda: _run(device),
    }
    return [check(name, examine) for name, examine in checks.items()]


class _Model:
    """The embedded model on the CPU and on the device, and one step's gradients of two rewards with each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.gradients = cache(self._gradients)

    def check_float32(self) -> str:
        """Compare the device's gradients in float32 with the CPU's."""
        distance = _distance(
            self.gradients(self.device, Precision.fp32), self.gradients(torch.device("cpu"), Precision.fp32)
        )
        if distance > 1e-3:
            raise ArithmeticError(
                f"gradients are {distance:.1e} from the CPU's, relatively; expected at most 1e-3. "
                "Is TF32 switched on?"
            )
        return f"gradients as on the CPU, within {distance:.0e}"

    def check_half(self, precision: Precision) -> str:
        """Compare the device's gradients in half precision with those in float32."""
        whole = self.gradients(self.device, Precision.fp32)
        distance = _distance(self.gradients(self.device, precision), whole)
        if distance > NEAR[precision]:
            raise ArithmeticError(
                f"gradients are {distance:.2f} from float32's, relatively; expected at most "
                f"{NEAR[precision]}. Take another model.precision than {precision.value}."
            )
        return f"gradients as in float32, within {distance:.0e}"

    def _gradients(self, device: torch.device, precision: Precision) -> Tensor:
        """Return the gradients [3, P] of two rewards and of the KL term."""
        model = replace(compose(["preset=tiny"]).model, device=str(device), precision=precision)
        policy = load_policy(model, seed=0)
        with torch.no_grad():  # B starts at zero, and A's gradient with it
            for place, parameter in enumerate(policy.parameters("trained").values()):
                draw = torch.randn(parameter.shape, generator=generator(0, "doctor", place))
                parameter.copy_(0.02 * draw)
        step, coefficients = _step(policy)
        parts = chunks(step.data, step.objective.micro_batch_size)
        none = torch.zeros(len(PROMPTS), dtype=torch.float64)
        return reward_gradients(step, parts, coefficients, Coefficients(none, none)).rows.cpu()


def _step(policy: PipelinePolicy) -> tuple[Step, Coefficients]:
    """Return a step of one image per prompt, and the coefficients of two rewards."""
    images = torch.arange(len(PROMPTS))
    x0 = noise(0, "doctor", 0, images.tolist(), policy.latent_shape).to(policy.device)
    times = torch.tensor([[0.2], [0.4], [0.6], [0.8]])
    data = TrainingSet(x0, policy.encode(list(PROMPTS)), images, images, times, samples=len(images))
    objective = Objective(beta=0.3, clip=1.0, kl_coef=0.5, seed=0, micro_batch_size=2)
    p = torch.tensor([[1.0, 0.3, 0.0, 0.6], [0.2, 0.9, 0.5, 0.1]], dtype=torch.float64)
    return Step(policy, Replicated(Ranks.alone()), data, objective, 1, lambda count: None), Coefficients(
        p, 1 - p
    )


def _distance(got: Tensor, expected: Tensor) -> float:
    """Return the largest relative distance of a row.

    Raises:
        ArithmeticError: a number is infinite or not a number.
    """
    if not got.isfinite().all():
        raise ArithmeticError(
            "gradients are infinite or not a number. Another version of torch may be right."
        )
    return float(((got - expected).norm(dim=1) / expected.norm(dim=1)).max())


def _memory(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device} has no memory of its own"
    free, whole = torch.cuda.mem_get_info(device)
    return f"{free / 2**30:.0f} of {whole / 2**30:.0f} GiB free"


def _attention(device: torch.device) -> str:
    """Compare attention and its gradients in bfloat16 with float64 at sizes of real models."""
    worst = 0.0
    for tokens, size in HEADS:
        draw = [torch.randn(1, 2, tokens, size, generator=generator(0, "attention", i)) for i in range(4)]
        for masked in (False, True):
            found = []
            for at, dtype in ((device, torch.bfloat16), (torch.device("cpu"), torch.float64)):
                q, k, v, cotangent = (part.bfloat16().to(at, dtype) for part in draw)
                inputs = [part.requires_grad_() for part in (q, k, v)]
                mask = torch.arange(tokens, device=at)[None, None, None] < tokens - 9 if masked else None
                output = scaled_dot_product_attention(q, k, v, attn_mask=mask)
                gradients = torch.autograd.grad(output, inputs, cotangent)
                found.append([part.detach().double().cpu().flatten(1) for part in (output, *gradients)])
            worst = max(worst, *(_distance(got, expected) for got, expected in zip(*found, strict=True)))
    if worst > 0.05:
        raise ArithmeticError(f"attention in bfloat16 is {worst:.2f} from float64's; expected at most 0.05")
    return f"in bfloat16 as in float64, within {worst:.0e}"


def _out_of_memory(device: torch.device) -> str:
    """Ask for more memory than there is, and compute afterwards."""
    try:
        torch.empty(2**60, dtype=torch.uint8, device=device)
    except (torch.OutOfMemoryError, RuntimeError):
        assert torch.ones(1000, device=device).sum() == 1000
        return "is noticed, and work goes on"
    raise AssertionError("the device granted more memory than there is")


def _run(device: torch.device) -> str:
    """Train two steps with `marble train`, one process per GPU up to two, and a third after a restart."""
    processes = min(2, torch.cuda.device_count()) if device.type == "cuda" else 1
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "preset=tiny", f"run.dir={folder}/run", f"model.device={device.type}",
            "rollout.groups=4", "rollout.group_size=4", "rollout.batch_size=8", "trainer.micro_batch_size=8",
            "trainer.eval_every=0", "trainer.checkpoint_every=1", "logging.wandb.mode=disabled",
            "--nproc", str(processes),
        ]  # fmt: skip
        for steps in (2, 3):
            command = [sys.executable, "-m", "marble_cli", "train", *words, f"trainer.steps={steps}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines()
                raise RuntimeError((said or [f"exit code {done.returncode}"])[-1])
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3], "steps are missing from metrics.jsonl"
    return f"of three steps in {processes} process{'es' * (processes > 1)}, resumed after the second"
