"""What the plan says that decoding takes, against the profiler's account of real allocations."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from marble_cli.config.enums import Precision
from marble_cli.policy import decoding
from marble_cli.policy.peak import peak_bytes
from marble_cli.policy.size import model_size
from tests.policy.families.cases import Case


def allocated(job: Callable[[], Any]) -> int:
    """Return the most bytes that torch's allocator of the CPU holds for a job."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found, torch.no_grad():
        job()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


# One per class of VAE. Those of videos are left out: on a CPU, their convolutions take working memory.
@pytest.mark.parametrize("case", ["sd3", "flux2", "sana"], indirect=True)
def test_decoding_takes_what_is_planned(case: Case) -> None:
    size, policy, x0 = model_size(case.model), case.policy, case.start()[:2]
    assert size is not None
    real = allocated(lambda: policy.family.decode(x0))
    assert size.drawing.decoding.count(2) == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("case", ["wan"], indirect=True)
def test_every_latent_of_a_long_video_adds_its_frames(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    long = replace(case.model, frames=29)  # eight latents
    size: Any = model_size(replace(long, precision=Precision.bf16))
    assert size.count_decoding() == model_size(long).count_decoding(), "FLOP do not depend on the precision"
    planned = size.drawing.decoding.count(1)
    monkeypatch.setattr(decoding, "FULL", 8)
    assert planned == pytest.approx(size.drawing.decoding.count.__wrapped__(1), rel=0.01)
    assert size.drawing.decoding.decoded == 29 * 3 * 32 * 48


@pytest.mark.parametrize("case", ["sd3"], indirect=True)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pictures_with_a_pixel_that_is_not_finite_are_told_apart(
    case: Case, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """As bytes they would look black or white; here in parts of two."""
    policy: Any = case.policy
    x0, decode = case.start(), policy.family.decode
    right, finite = policy.decode(x0)
    assert finite.tolist() == [True] * 3
    marked = x0[2]

    def overflow(part: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = decode(part)
        pixels[(part == marked).flatten(1).all(1), 1, 3, 5] = value
        return pixels

    monkeypatch.setattr(policy.family, "decode", overflow)
    monkeypatch.setitem(decoding.DECODED_PIXELS, "cpu", 2 * 32 * 16)
    got, finite = policy.decode(x0)
    assert finite.tolist() == [True, True, False]
    assert (got[:2].int() - right[:2].int()).abs().max() <= 1
    assert not policy.decode(x0 * math.nan)[1].any()


def test_the_peak_is_of_what_is_alive_at_a_time() -> None:
    def job() -> None:
        one = torch.empty(1024, device="meta")  # 4096 bytes
        two = one * 2
        two[:10].add_(1)  # a view, and in place
        del one
        torch.cat([two, two, torch.empty(1, device="meta")])  # the last, of 4 bytes, takes 512

    assert peak_bytes(job) == 4096 + 512 + 8704
