"""Short runs of the embedded model on this device: its settings, evaluation, export and process group."""

from pathlib import Path
from typing import Any

import pytest
import torch

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export
from marble_cli.config.compose import compose
from marble_cli.evaluate.evaluate import evaluate
from marble_cli.metrics.jsonl import read_rows
from marble_cli.policy.load import load_policy
from marble_cli.run.train import train
from tests.gpu.tiny_run import FOUR_STEPS, assert_near, cut_and_resumed
from tests.run.runs import timeless

# One that counts bytes, or reads, would turn a pixel's rounding into another advantage.
SMOOTH = "rewards=[colorfulness]"
TWO_STEPS = ("trainer.steps=2", "trainer.eval_every=0", "balance.refresh_every=2")


def run(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """Train, and return the rows of metrics without clocks."""
    assert train(compose([*overrides, f"run.dir={folder}"]), resume="auto") == 0
    return timeless(read_rows(folder / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        (["model.gradient_checkpointing=true"], 1e-3),
        (["trainer.micro_batch_size=7"], 1e-3),
        (["model.embedding_cache=CACHE"], 1e-3),
        (["model.precision=bf16"], 0.2),
        (["model.precision=fp16"], 0.05),
    ],
    ids=["gradient_checkpointing", "micro_batch_size", "embedding_cache", "bf16", "fp16"],
)
def test_first_step_with_a_setting_is_near_that_without(
    tiny_overrides: list[str], tmp_path: Path, settings: list[str], tolerance: float
) -> None:
    """Half precision draws slightly other pictures, whose scores differ as slightly."""
    smooth = [*tiny_overrides, SMOOTH, *TWO_STEPS]
    settings = [word.replace("CACHE", str(tmp_path / "cache")) for word in settings]
    rows, others = run(tmp_path / "without", *smooth), run(tmp_path / "with", *smooth, *settings)
    assert [row["balance/refresh"] for row in others] == [1, 0]
    assert_near(rows[0], others[0], tolerance)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_shards_in_a_group_of_one_train_as_whole_weights(
    tiny_overrides: list[str], tmp_path: Path, kind: str
) -> None:
    """FSDP2 over one rank, whose collectives go through NCCL."""
    smooth = [*tiny_overrides, SMOOTH, *TWO_STEPS, f"model.train={kind}"]
    rows = run(tmp_path / "whole", *smooth)
    others = run(tmp_path / "sharded", *smooth, "trainer.parallel=fsdp")
    for row, other in zip(rows, others, strict=True):
        assert_near(row, other, 1e-3)


def test_a_run_cut_and_resumed_with_the_fastest_algorithms_is_near_the_uncut_run(
    tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in another order differ by 1e-7, of which four steps of AdamW must not make more than 1e-3."""
    smooth = [*tiny_overrides, SMOOTH, *FOUR_STEPS]
    rows = run(tmp_path / "whole", *smooth)
    cut_and_resumed(compose([*smooth, f"run.dir={tmp_path / 'cut'}"]), monkeypatch)
    others = timeless(read_rows(tmp_path / "cut" / "metrics.jsonl"))
    assert len(rows) == len(others) == 7
    for row, other in zip(rows, others, strict=True):
        assert_near(row, other, 1e-3)


def test_a_run_is_evaluated_and_exported(
    tiny_overrides: list[str], tmp_path: Path, device: torch.device
) -> None:
    """The evaluation equals the run's own, the CPU judges alike, and the export loads into a CPU policy."""
    folder = tmp_path / "run"
    rows = run(folder, *tiny_overrides, *FOUR_STEPS, "optimizer.lr=0.01")
    assert all(row["balance/refresh"] in (0, 1) for row in rows if row["phase"] == "train")
    here = evaluate(str(folder), ["base"], [], tmp_path / "judged")
    on_cpu = evaluate(str(folder), ["base"], ["model.device=cpu"], None)
    assert (tmp_path / "judged" / "report.json").is_file()
    for one, other in zip(here.rewards, on_cpu.rewards, strict=True):
        assert one.mean == pytest.approx(rows[-1][f"reward/{one.name}/mean"], rel=1e-2, abs=1e-2)
        if one.name in ("colorfulness", "clipscore"):
            assert one.mean == pytest.approx(other.mean, rel=1e-2)
    file = export(str(folder), tmp_path / "exported")
    assert file.is_file()
    _, _, average = store.load(store.resolve(str(folder)))
    policies = [
        load_policy(compose([*tiny_overrides, "run.dir=unused", f"model.device={name}"]).model, 0)
        for name in (device.type, "cpu")
    ]
    xt = torch.randn(2, *policies[0].latent_shape, generator=torch.Generator().manual_seed(0))
    found = []
    for policy in policies:
        policy.load_trained(average)
        x, t = xt.to(policy.device), torch.tensor([0.3, 0.9], device=policy.device)
        with torch.no_grad():
            found.append(policy.velocity(x, t, policy.encode(["a red cube", "two cubes"]), "trained").cpu())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
