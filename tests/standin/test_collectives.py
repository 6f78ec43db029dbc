"""Every rank asks NCCL for the same in the same order, on its own GPU alone."""

import re
from pathlib import Path

import pytest

from tests.standin.device import marble
from tests.standin.test_runs import FSDP, SHORT


@pytest.mark.parametrize("parallel", [(), (FSDP,)], ids=["ddp", "fsdp"])
def test_ranks_agree_on_the_order_of_collectives(parallel: tuple[str, ...], tmp_path: Path) -> None:
    words = (*SHORT, *parallel, f"run.dir={tmp_path / 'run'}", "--nproc", "2")
    done = marble("train", *words, devices=2, FAKECUDA_JOURNAL=str(tmp_path / "journal"))
    assert done.code == 0, done.said
    calls, devices = {}, {}
    for journal in tmp_path.glob("journal.*"):
        lines = journal.read_text().splitlines()
        # Communicators name their rank; what follows must not differ.
        asked = [re.sub(r"rank=\d+", "", line) for line in lines if line.startswith("nccl")]
        if asked:
            rank = journal.name.split(".")[1]
            calls[rank] = asked
            devices[rank] = {line.split()[3] for line in lines if line.startswith("context on device")}
    assert calls.keys() == {"0", "1"}
    assert calls["0"] == calls["1"]
    assert devices == {"0": {"0"}, "1": {"1"}}
    assert any("allreduce" in call for call in calls["0"])
    if parallel:
        assert any("allgather" in call for call in calls["0"])
        assert any("reducescatter" in call for call in calls["0"])
