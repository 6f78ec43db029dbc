"""Make a small random model prefer a reward's own examples, for the tests of plugins."""

import torch
from torch import Tensor, nn

from marble_cli.rewards.registry import Reward
from marble_cli.rewards.testing.examples import read_sample


@torch.no_grad()
def prefer_examples(reward: Reward, layer: nn.Linear) -> None:
    """Solve the last layer of a model, so that each better example exceeds its worse one by the same amount.

    Random weights prefer nothing. All before the layer stays random, so the order holds only if the reward
    reads pictures and prompts. The layer's weights keep their length.

    Args:
        reward: one without aspects, in this process, whose `examples` are a function.
        layer: of its model, whose first output is the score; called with the images in their order.
    """
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].reshape(-1)))
    try:
        for pair in reward.plugin.examples():
            for sample in pair:
                reward.call(read_sample(reward.plugin, *sample))
    finally:
        hook.remove()
    better, worse = torch.stack(seen).view(-1, 2, layer.in_features).unbind(1)
    solution = torch.linalg.pinv(better - worse).sum(1)
    layer.weight[0] = solution * layer.weight[0].norm() / solution.norm()
