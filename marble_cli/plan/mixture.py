"""Images of several kinds in a plan: the share of each, a typical step of them, and what an image costs."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from marble_cli.config.schema import ModelConfig, SourceConfig
from marble_cli.data.prompts import Prompt
from marble_cli.policy.model_size import ModelSize, PassCost
from marble_cli.policy.size import model_size
from marble_cli.rollout.sizes import largest

Kind = tuple[int | str, int]  # of images: their size, and the number of pictures that each starts from


def kind_shares(
    sources: Mapping[str, SourceConfig], prompts: Mapping[str, list[Prompt]], default: int | str
) -> dict[Kind, float]:
    """Return the share of each kind in the images of a run, the largest share first.

    Without prompts, images have the size `default` and start from one picture.

    Args:
        sources: of the prompts, with their weights.
        prompts: to train on, by source.
        default: the size of prompts that have none of their own.

    Raises:
        DataError: a picture, whose shape decides, cannot be read.
    """
    total, shares = sum(source.weight for source in sources.values()), dict[Kind, float]()
    for name, rows in prompts.items():
        for prompt in rows:
            kind = prompt.drawn_at(default), len(prompt.images)
            shares[kind] = shares.get(kind, 0.0) + sources[name].weight / total / len(rows)
    found = {kind: share for kind, share in shares.items() if share > 0} or {(default, 1): 1.0}
    return dict(sorted(found.items(), key=lambda row: -row[1]))


def typical_groups(groups: int, shares: Collection[float]) -> list[int]:
    """Return how many of a step's groups are of each kind; what is left goes to the largest remainders."""
    whole = [int(share * groups + 1e-9) for share in shares]
    rests = [share * groups - count for share, count in zip(shares, whole, strict=True)]
    order = sorted(range(len(whole)), key=lambda place: -rests[place])
    for place in order[: groups - sum(whole)]:
        whole[place] += 1
    return [count for count in whole if count]


def mixed_size(
    model: ModelConfig, shares: Mapping[Kind, float], evaluated: int | str | None
) -> ModelSize | None:
    """Return a model's sizes for images of several kinds: memory is that of the largest with most pictures.

    A pass costs what it costs on average. Other arguments and errors are those of `model_size`.
    """
    most = max(pictures for _, pictures in shares)
    size = largest(size for size, _ in shares)
    whole = model_size(replace(model, resolution=size), evaluated, pictures=most)
    if whole is None or len(shares) == 1:
        return whole
    each = {kind: model_size(replace(model, resolution=kind[0]), pictures=kind[1]) for kind in shares}

    def mix() -> PassCost:
        costs = [(share, part.cost) for kind, share in shares.items() if (part := each[kind]) is not None]
        forward, backward = (
            round(sum(share * getattr(cost, name) for share, cost in costs))
            for name in ("forward", "backward")
        )
        return replace(whole.cost, forward=forward, backward=backward)

    return replace(whole, count_cost=mix)
