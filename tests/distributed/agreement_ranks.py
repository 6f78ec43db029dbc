"""Run by both ranks of tests/distributed/test_agreement.py.

Arguments: the run's folder, and a copy of the first rank's run.
"""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import CheckpointError, ConfigError, PeerError, RequestError
from marble_cli.run.agreement import agree_on_checkpoint, read_checkpoint

run = Path(sys.argv[1])


def outcome(ranks: Ranks, *errors: Exception | None) -> tuple[str, int | None, str] | None:
    """Let each rank fail with its entry of `errors`; return type, exit code and text of this rank's error."""
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
    raised = outcome(ranks, None, ConfigError("no key"))
    assert raised == [("PeerError", 2, "process 1 failed: no key"), ("ConfigError", 2, "no key")][me]
    raised = outcome(ranks, ValueError("odd"), ConfigError("no key"))
    assert raised == [("ValueError", None, "odd"), ("PeerError", 1, "process 0 failed: odd")][me]
    with ranks.raise_together():  # the ranks are still synchronised
        pass

    step = run / "checkpoints" / "step-00000003"
    assert agree_on_checkpoint(ranks, run, step if me == 0 else None, named=False) == step
    for turn in ("absent", "whole", "damaged"):  # the copy on the second rank's disk
        if me == 1 and turn != "absent":
            shutil.copytree(sys.argv[2], run, dirs_exist_ok=True)
        if me == 1 and turn == "damaged":
            (step / "optimizer.safetensors").write_bytes(b"short")
        stored = read_checkpoint(ranks, step)
        assert (stored.state.step, stored.state.info, stored.rewards) == (3, {"best": 0.1}, ["a", "b"]), turn
        assert stored.balance["name"] == "marble"
        groups = {**stored.state.tensors, "lora": stored.weights, "ema": stored.ema}
        balance = groups.pop("balance")  # integers and scalars too, like the state of PCD
        torch.testing.assert_close(balance["steps"], torch.tensor(7), rtol=0, atol=0)
        assert balance["seen"].tolist() == [True, False], turn
        assert balance["none"].shape == (0, 2), turn
        assert sorted(groups) == ["behaviour", "ema", "lora", "optimizer"]
        for group, tensors in groups.items():
            assert sorted(tensors) == ["bfloat16", "float32", "float64"]
            for kind, tensor in tensors.items():
                draw = torch.Generator().manual_seed(sum(map(ord, group + kind)))
                expected = torch.randn(3, 2, generator=draw).to(getattr(torch, kind))
                assert tensor.dtype == expected.dtype, (turn, group, kind)
                assert torch.equal(tensor, expected), (turn, group, kind)

    if me == 1:
        (run / "checkpoints" / "step-00000007").mkdir()
    with pytest.raises(RequestError if me == 0 else PeerError) as refused:
        agree_on_checkpoint(ranks, run, step, named=False)
    for part in ("step 7", "step 3", str(run.absolute()) if me == 0 else "", "first node"):
        assert part in str(refused.value), str(refused.value)
    assert agree_on_checkpoint(ranks, run, step, named=True) == step
    (step / "state.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError if me == 0 else PeerError) as damaged:
        read_checkpoint(ranks, step)
    assert damaged.value.exit_code == 2
print("done", me)
