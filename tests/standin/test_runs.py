"""Runs of the embedded model pass every check of devices, dtypes and collectives."""

from pathlib import Path

import pytest

from marble_cli.metrics.jsonl import read_rows
from tests.standin.device import marble

WEIGHTS = "balance.weights={clipscore: 1, colorfulness: 1, compressibility: 1, ocr: 1, objects: 1}"
# Gradients hold no values here, so a QP on them would have none either.
SHORT = (
    "preset=tiny", "model.compile=false", "balance=fixed", WEIGHTS,
    "rollout.groups=4", "rollout.group_size=4", "rollout.batch_size=4", "rollout.steps=4",
    "trainer.steps=2", "trainer.micro_batch_size=4", "trainer.checkpoint_every=1",
    "trainer.eval_every=2", "trainer.eval_prompts=1", "logging.wandb.mode=disabled", "logging.images_every=0",
)  # fmt: skip
FSDP = "trainer.parallel=fsdp"
RUNS: dict[str, tuple[int, tuple[str, ...]]] = {
    "alone": (1, ()),
    "quantised": (1, ("model.quantization=nf4", "optimizer=adamw8bit", "model.lora.rank=64")),
    "ddp": (2, ()),
    "fsdp": (2, (FSDP,)),
    "hsdp of all weights": (4, (FSDP, "trainer.fsdp.replicas=2", "model.train=full")),
    "half precision": (2, ("model.precision=bf16",)),
    "compiled": (1, ("model.compile=true",)),
    "compiled shards": (2, ("model.compile=true", FSDP)),
    "offloaded": (1, ("model.offload=blocks", "model.precision=bf16")),
    "compiled and offloaded": (1, ("model.offload=blocks", "model.compile=true")),
    "a refresh in every step": (2, ("balance.mode=full",)),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_and_evaluates(name: str, tmp_path: Path) -> None:
    processes, overrides = RUNS[name]
    words = (*SHORT, *overrides, f"run.dir={tmp_path / 'run'}", "--nproc", str(processes))
    done = marble("train", *words, devices=processes)
    assert done.code == 0, done.said
    assert "changed the current GPU" not in done.said
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["phase"] == "train"] == [1, 2]
