"""Which rank trains on which images, when some are left out or replaced."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from marble_cli.data.prompts import Prompt
from marble_cli.distributed.shares import share
from marble_cli.policy.base import PromptEmbeddings, RepeatedEmbeddings
from marble_cli.rewards.scorer import Scores
from marble_cli.rollout.samples import Samples
from marble_cli.run.drawn import Drawn
from marble_cli.run.inspection import keep_batch
from marble_cli.step.batches import TrainingSet
from marble_cli.step.reward_signal import Signal

SIZE = 3


def drawn(
    count: int, world: int, rank: int, tag: float = 0.0, together: int = 1, sizes: Sequence[int] = (1,)
) -> Drawn:
    """Images whose latents, embeddings and prompts tell their number; `tag` tells who drew them.

    Group after group has one of the `sizes`.
    """
    widths = [sizes[image // SIZE % len(sizes)] for image in range(count)]
    everywhere = share(widths, world, together).everywhere
    own = share(widths, world, together).images[rank]
    values = own.double() + tag
    samples = Samples(
        x0=[torch.full((1, 1, widths[i]), i + tag) for i in own.tolist()],
        images=[torch.full((1, 1, widths[i]), i, dtype=torch.uint8) for i in own.tolist()],
        embeddings=RepeatedEmbeddings(PromptEmbeddings({"text": values}).each(), torch.arange(len(own))),
        prompts=[Prompt(f"{value}", {}, "general") for value in values.tolist()],
        pending=[],
        drawn=torch.arange(len(own)),
        negatives=RepeatedEmbeddings(PromptEmbeddings({"text": -values}).each(), torch.arange(len(own))),
    )
    scores = torch.arange(count).double()[None] + tag
    every = torch.ones(1, count, dtype=torch.bool)
    return Drawn(
        samples, Scores(["k"], scores, every, ~every), torch.arange(count) // SIZE, everywhere,
        redrawn=0, failed=torch.tensor([1]), drawing=1.0, waiting=2.0,
    )  # fmt: skip


def numbers(one: Drawn, rank: int) -> Tensor:
    """What this rank's rows say their numbers are, -1 for padding."""
    found = torch.stack([latents.flatten()[0] for latents in one.samples.x0])
    texts = (one.samples.embeddings, one.samples.negatives)
    text, negative = (of[torch.arange(len(found))].tensors["text"] for of in texts if of is not None)
    assert torch.equal(found.double(), text)
    assert torch.equal(-found.double(), negative)
    assert [float(prompt.text) for prompt in one.samples.prompts] == found.tolist()
    return found.where(one.everywhere[rank] >= 0, -1.0)


@pytest.mark.parametrize("sizes", [(1,), (1, 2)])
@pytest.mark.parametrize("together", [1, SIZE])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_train_on_every_chosen_image_once(world: int, together: int, sizes: Sequence[int]) -> None:
    """Rows of all ranks are as many of each size, and padding comes after a size's images."""
    trained = torch.tensor([True, False, False, True, True, False, True, True, False, False, False, True])
    parts = [
        drawn(12, world, rank, together=together, sizes=sizes).only(trained, rank) for rank in range(world)
    ]
    rows = [numbers(part, rank) for rank, part in enumerate(parts)]
    assert len({tuple(latents.shape[2] for latents in part.samples.x0) for part in parts}) == 1
    every = torch.cat(rows)
    assert sorted(every[every >= 0].tolist()) == trained.nonzero().flatten().tolist()
    for size in sizes:
        same = [i for i, latents in enumerate(parts[0].samples.x0) if latents.shape[2] == size]
        for row in rows:
            assert (row[same].diff()[row[same][1:] < 0] <= 0).all(), "padding is last"
        assert len(same) == max(int((row[same] >= 0).sum()) for row in rows)
    if len(sizes) == 1:
        assert every[every >= 0].tolist() == trained.nonzero().flatten().tolist()


def test_all_images_stay_in_their_rows() -> None:
    for rank in (0, 1):
        one = drawn(15, 2, rank)
        same = one.only(torch.ones(15, dtype=torch.bool), rank)
        assert torch.equal(same.everywhere, one.everywhere)
        assert all(map(torch.equal, same.samples.x0, one.samples.x0))


@pytest.mark.parametrize("other_sizes", [(1,), (2, 1)])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_replaced_images_have_the_new_latents_and_scores(world: int, other_sizes: Sequence[int]) -> None:
    """Groups 1 and 3 of five are drawn again, shared evenly whoever drew them first, and of any size."""
    images = torch.tensor([3, 4, 5, 9, 10, 11])
    expected = torch.arange(15).double()
    expected[images] = torch.arange(6).double() + 100
    seen = torch.zeros(15, dtype=torch.int64)
    for rank in range(world):
        merged = drawn(15, world, rank).replaced_by(images, drawn(6, world, rank, 100.0, sizes=other_sizes))
        assert torch.equal(merged.scores.values[0], expected)
        assert (merged.redrawn, merged.failed.tolist(), merged.drawing, merged.waiting) == (2, [2], 2.0, 4.0)
        kept = merged.only(torch.arange(15) != 14, rank)
        rows, own = numbers(kept, rank), kept.everywhere[rank]
        assert torch.equal(rows[own >= 0].double(), expected[own[own >= 0]])
        seen[own[own >= 0]] += 1
    assert seen.tolist() == [1] * 14 + [0]


@pytest.mark.parametrize("sizes", [(1,), (1, 2)])
def test_a_kept_batch_has_the_images_of_each_size(tmp_path: Path, sizes: Sequence[int]) -> None:
    kept = drawn(12, 1, 0, sizes=sizes).samples
    rows = torch.arange(12)
    data = TrainingSet(kept.x0, kept.embeddings, rows, rows, torch.ones(12, 1), 12, real=rows != 3)
    every = torch.ones(1, 12, dtype=torch.bool)
    signal = Signal(every.double(), every, rows // SIZE, every.double(), every.double())
    found = load_file(keep_batch(tmp_path, 3, 0, kept, data, signal))
    assert found["indices"].tolist() == [0, 1, 2, -1, *range(4, 12)]
    if len(sizes) == 1:
        assert found["x0"].flatten().tolist() == [latents.item() for latents in kept.x0]
        assert found["images"].shape == (12, 1, 1, 1)
        return
    assert "x0" not in found
    assert sorted([*found["rows/0"].tolist(), *found["rows/1"].tolist()]) == list(range(12))
    for part in "01":
        for place, row in enumerate(found[f"rows/{part}"].tolist()):
            assert torch.equal(found[f"x0/{part}"][place], kept.x0[row])
            assert torch.equal(found[f"images/{part}"][place], kept.images[row])
