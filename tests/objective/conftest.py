"""The example with every difficulty."""

import pytest
import torch
from torch import Tensor, nn

from marble_cli.config.enums import AdvantageStd
from marble_cli.objective.advantages import advantages
from tests.objective.example import Step


@pytest.fixture
def step() -> Step:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    groups = torch.repeat_interleave(torch.arange(4), torch.tensor([2, 7, 5, 3]))
    n = len(groups)
    applicable = torch.rand(5, n, generator=generator) < 0.6
    applicable[0] = True
    applicable[3] = False
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 12)).double()
    x0 = normal(n, 3, 2, 2).repeat_interleave(2, 0)
    t = torch.rand(2 * n, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    time = t[:, None, None, None]
    return Step(
        net=net,
        x0=x0,
        xt=(1 - time) * x0 + time * normal(2 * n, 3, 2, 2),
        t=t,
        v_old=normal(2 * n, 3, 2, 2),
        applicable=applicable,
        advantage=advantages(normal(5, n) ** 3, applicable, groups, std=AdvantageStd.group),
    )
