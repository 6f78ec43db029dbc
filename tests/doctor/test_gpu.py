"""`marble doctor --gpu` finds out whether a device computes as the CPU does."""

import pytest
import torch
from torch import Tensor

from marble_cli.doctor import gpu
from marble_cli.doctor.gpu import examine_gpu

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in processes of its own is for tests/gpu."""
    monkeypatch.setattr(gpu, "_run", lambda device: "not tried")


def test_nothing_is_wrong_with_the_cpu() -> None:
    findings = examine_gpu(CPU)
    assert [finding for finding in findings if not finding.ok] == []
    assert len({finding.name for finding in findings}) == len(findings) == 7


def test_no_gpu_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (finding,) = examine_gpu()
    assert not finding.ok
    assert "torch finds none" in finding.detail


@pytest.mark.parametrize("factor", [1.01, 2.0, float("nan")])
def test_other_gradients_are_found(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """A device of another name, whose first gradient differs, stands for one that computes wrongly."""

    def gradients(self: object, device: torch.device, precision: object) -> Tensor:
        rows = torch.eye(3)
        rows[0] *= 1.0 if device == CPU else factor
        return rows

    monkeypatch.setattr(gpu._Model, "_gradients", gradients)
    monkeypatch.setattr(gpu, "_attention", lambda device: "not tried")
    found = {finding.name: finding for finding in examine_gpu(torch.device("cpu", 0))}
    assert not found["float32"].ok
    assert "gradients are" in found["float32"].detail


def test_wrong_attention_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that forgets its mask where it computes in half precision; the model takes no part."""
    monkeypatch.setattr(gpu._Model, "_gradients", lambda self, device, precision: torch.eye(3))
    attention = gpu.scaled_dot_product_attention

    def forgetful(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
        return attention(q, k, v, attn_mask=attn_mask if q.dtype is torch.float64 else None)

    monkeypatch.setattr(gpu, "scaled_dot_product_attention", forgetful)
    found = {finding.name: finding for finding in examine_gpu(CPU)}
    assert not found["attention"].ok
