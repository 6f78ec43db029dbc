"""Run by both ranks of tests/distributed/test_agreement.py.

Arguments: the run's folder, and a copy of the first rank's run.
"""

import shutil
import sys
from pathlib import Path

import torch

from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import CheckpointError, ConfigError, PeerError, RequestError
from marble_cli.run.agreement import agree_on_checkpoint, read_checkpoint

run = Path(sys.argv[1])


def outcome(ranks: Ranks, *errors: Exception | None) -> tuple[str, int | None, str] | None:
    """Return the type, exit code and text of the error that this rank raises if each rank fails with its own of `errors`."""
    try:
        with ranks.raise_together():
            if (error := errors[ranks.rank]) is not None:
                raise error
    except Exception as error:
        return type(error).__name__, getattr(error, "exit_code", None), str(error)
    return None


with Ranks() as ranks:
    me = ranks.rank
    assert ranks.all_gather_json({"rank": me, "text": "ü" * me}) == [
        {"rank": 0, "text": ""},
        {"rank": 1, "text": "ü"},
    ]
    assert ranks.broadcast_json(me if me == 0 else None) == 0
    assert outcome(ranks, None, None) is None
    told = outcome(ranks, None, ConfigError("no key"))
    assert told == [("PeerError", 2, "process 1 failed: no key"), ("ConfigError", 2, "no key")][me], told
    told = outcome(ranks, ValueError("odd"), ConfigError("no key"))
    assert told == [("ValueError", None, "odd"), ("PeerError", 1, "process 0 failed: odd")][me], told
    with ranks.raise_together():  # they are still in step
        pass

    step = run / "checkpoints" / "step-00000003"
    assert agree_on_checkpoint(ranks, run, step if me == 0 else None, named=False) == step
    for turn in ("absent", "whole", "damaged"):  # of the second rank's disk
        if me == 1 and turn != "absent":
            shutil.copytree(sys.argv[2], run, dirs_exist_ok=True)
        if me == 1 and turn == "damaged":
            (step / "optimizer.safetensors").write_bytes(b"short")
        stored = read_checkpoint(ranks, step)
        assert (stored.state.step, stored.state.info, stored.rewards) == (3, {"best": 0.1}, ["a", "b"]), turn
        assert stored.balance["name"] == "marble"
        groups = {**stored.state.tensors, "lora": stored.weights, "ema": stored.ema}
        balance = groups.pop("balance")  # whole numbers and scalars too, as PCD's
        assert balance["steps"].dtype == torch.int64 and torch.equal(balance["steps"], torch.tensor(7)), turn
        assert balance["seen"].tolist() == [True, False] and balance["none"].shape == (0, 2), turn
        assert sorted(groups) == ["behaviour", "ema", "lora", "optimizer"]
        for group, tensors in groups.items():
            assert sorted(tensors) == ["bfloat16", "float32", "float64"]
            for kind, tensor in tensors.items():
                draw = torch.Generator().manual_seed(sum(map(ord, group + kind)))
                expected = torch.randn(3, 2, generator=draw).to(getattr(torch, kind))
                assert tensor.dtype == expected.dtype and torch.equal(tensor, expected), (turn, group, kind)

    if me == 1:
        (run / "checkpoints" / "step-00000007").mkdir()
    try:
        agree_on_checkpoint(ranks, run, step, named=False)
    except (RequestError, PeerError) as error:
        assert isinstance(error, RequestError if me == 0 else PeerError)
        for part in ("step 7", "step 3", str(run.absolute()) if me == 0 else "", "first node"):
            assert part in str(error), str(error)
    else:
        raise AssertionError("the later step was not noticed")
    assert agree_on_checkpoint(ranks, run, step, named=True) == step
    (step / "state.json").unlink(missing_ok=True)
    try:
        read_checkpoint(ranks, step)
    except (CheckpointError, PeerError) as error:
        assert isinstance(error, CheckpointError if me == 0 else PeerError) and error.exit_code == 2
    else:
        raise AssertionError("read what is not there")
print("done", me)
