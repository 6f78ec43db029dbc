"""Run by both ranks of tests/distributed/test_ranks.py: every collective of `Ranks`."""

import torch
import torch.distributed as dist

from marble_cli.distributed.ranks import Ranks

begun = []
all_reduce = dist.all_reduce


def watched(tensor, *more, **named):
    begun.append((tensor.device.type, tensor.numel()))
    return all_reduce(tensor, *more, **named)


dist.all_reduce = watched
with Ranks() as ranks:
    assert begun == [("cpu", 1)]  # the first all-reduce connects the ranks
    me = ranks.rank
    assert (ranks.world, ranks.is_main) == (2, me == 0)
    own = torch.tensor([1.0 + me, 10.0], dtype=torch.float64)
    assert ranks.all_reduce(own) is own
    assert own.tolist() == [3.0, 20.0]
    rows = torch.arange(6).reshape(2, 3).double()[:, :2] + 100 * me
    assert ranks.all_gather(rows).tolist() == [[0, 1, 100, 101], [3, 4, 103, 104]]
    row = torch.tensor([me, 7])
    assert ranks.all_gather(row).tolist() == [0, 7, 1, 7]
    assert ranks.all_gather(rows.T).tolist() == [[0, 3, 100, 103], [1, 4, 101, 104]]
    assert ranks.broadcast(torch.tensor([me + 0.1], dtype=torch.float64)).tolist() == [0.1]
    assert [ranks.any(me == 1), ranks.any(True), ranks.any(False)] == [True, True, False]
print("done", me)
