"""A run of two processes with a fault on the second: out of memory, other rounding, or a wrong bit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.checkpoint import store
from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.metrics.jsonl import read_rows
from tests.distributed.processes import ends, job

RunConfigMaker = Callable[..., RunConfig]
SETTINGS = (
    "trainer.steps=4",
    "trainer.keep_last=9",
    "balance.refresh_every=2",
    "balance.warmup=0",
    "rollout.steps=2",
)


@pytest.fixture
def ill(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[tuple[int, str, str]]]:
    """Return a function that runs both ranks with a fault in a step and returns how their processes end."""
    for name in (
        "TRANSFORMERS_VERBOSITY",
        "DIFFUSERS_VERBOSITY",
    ):  # read when imported, before `marble` sets them
        monkeypatch.setenv(name, "error")

    def run(fault: str, step: int, *overrides: str) -> list[tuple[int, str, str]]:
        file = tmp_path / "config.yaml"
        file.write_text(dump(run_config(*SETTINGS, f"run.dir={tmp_path / 'run'}", *overrides)))
        command = (Path(__file__).with_name("faulty_ranks.py"), fault, step, "--config-name", file)
        return ends(job([command] * 2))

    return run


def kept(run: Path) -> list[int]:
    """Check that every checkpoint of a run is intact, and return their steps."""
    for path in store.steps(run):
        store.load(path)
    return sorted(map(store.step_of, store.steps(run)))


@pytest.mark.parametrize(
    ("step", "shares"),
    [pytest.param(3, [], id="refresh"), pytest.param(4, ["broadcast float64"], id="amortised")],
)
def test_out_of_memory_on_the_second_rank_keeps_the_last_step(
    ill: Callable[..., list[tuple[int, str, str]]], tmp_path: Path, step: int, shares: list[str]
) -> None:
    """Memory runs out in the last micro-batch, before any rank sums gradients: NCCL would wait for ever."""
    first, second = ill("memory", step, "trainer.checkpoint_every=9")
    assert (first[0], second[0]) == (1, 1)
    assert first[2] == ""  # the first rank only follows the second
    assert f"marble: out of memory in the training of step {step}: CUDA out of memory." in second[2]
    assert "Lower trainer.micro_batch_size" in second[2]
    assert kept(tmp_path / "run") == [step - 1]
    for _, out, _ in (first, second):
        begun = [line for line in out.splitlines() if line.startswith(("all_", "broadcast"))]
        told = [*shares, "all_gather int64", "all_gather uint8"]  # raise_together after the passes
        assert begun == [*told, "all_reduce int64"]  # the barrier after the first rank's checkpoint


def test_out_of_memory_on_the_second_shard_ends_all_ranks(
    ill: Callable[..., list[tuple[int, str, str]]], tmp_path: Path
) -> None:
    first, second = ill("memory", 4, "trainer.checkpoint_every=2", "trainer.parallel=fsdp")
    assert (first[0], second[0]) == (1, 1)
    assert "process 0 on" in first[2]
    assert "lost the others" in first[2]
    assert "out of memory in the training of step 4" in second[2]
    assert kept(tmp_path / "run") == [2]


def test_different_rounding_on_a_rank_gives_equal_weights(
    ill: Callable[..., list[tuple[int, str, str]]], tmp_path: Path
) -> None:
    """All ranks use the main rank's shares, so weights are equal bit by bit; every checkpoint checks this."""
    for code, _, err in ill("rounding", 1, "trainer.checkpoint_every=1"):
        assert (code, err) == (0, "")
    assert kept(tmp_path / "run") == [1, 2, 3, 4]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_differing_bit_is_found_at_the_next_checkpoint(
    ill: Callable[..., list[tuple[int, str, str]]], tmp_path: Path, parallel: str
) -> None:
    first, second = ill(
        "weights", 3, "trainer.checkpoint_every=2", f"trainer.parallel={parallel}", "trainer.fsdp.replicas=2"
    )
    assert (first[0], second[0]) == (1, 1)
    for part in (
        "after step 4 the trained weights of process 1 on ",
        "differ from those of process 0 on ",
        "Step 4 is not kept; the checkpoint of step 2 and those before it are.",
        "--resume auto",
    ):
        assert part in first[2]
    assert kept(tmp_path / "run") == [2]
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]
