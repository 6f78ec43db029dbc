"""cuDNN's attention is enabled for passes without gradients only; every device has the setting."""

from typing import Any

import pytest
import torch
from torch.backends.cuda import cudnn_sdp_enabled

from marble_cli.config.schema import RunConfig
from marble_cli.policy import attention
from marble_cli.policy.load import load_policy
from marble_cli.seeds import noise


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether cuDNN's attention was enabled at each attention."""
    found: list[bool] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def attention(*given: Any, **named: Any) -> Any:
        found.append(cudnn_sdp_enabled())
        return attend(*given, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    return found


def velocity(policy: Any, embeddings: Any) -> torch.Tensor:
    xt = noise(0, "test", 0, [0, 1], policy.latent_shape)
    found: torch.Tensor = policy.velocity(xt, torch.tensor([0.3, 0.8]), embeddings, "trained")
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_cudnn_takes_no_gradient(run_config: Any, seen: list[bool], checkpointing: bool) -> None:
    config: RunConfig = run_config(f"model.gradient_checkpointing={str(checkpointing).lower()}")
    policy = load_policy(config.model, seed=0)
    embeddings = policy.encode(["a cup", "a boat"])
    del seen[:]
    with torch.no_grad():
        velocity(policy, embeddings)
    drawn = len(seen)
    assert seen == [True] * drawn
    velocity(policy, embeddings).sum().backward()
    assert len(seen) == (3 if checkpointing else 2) * drawn
    assert not any(seen[drawn:])


def test_a_process_without_it_stays_so(
    policy: Any, seen: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "ALLOWED", False)
    with torch.no_grad():
        velocity(policy, policy.encode(["a cup", "a boat"]))
    assert seen
    assert not any(seen)


def test_the_setting_is_put_back_after_an_error(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(policy.family, "velocity", fail)
    with torch.no_grad(), pytest.raises(RuntimeError, match="no memory"):
        velocity(policy, policy.encode(["a cup", "a boat"]))
    assert not cudnn_sdp_enabled()
