"""Runs of four steps, and how two of them are compared."""

import json
import shutil
from pathlib import Path
from typing import Any

from marble_cli.metrics.jsonl import read_rows

# Step 1 refreshes, steps 2 and 3 use the cached direction, step 4 refreshes again and smooths.
SETTINGS = [
    "balance.refresh_every=3",
    "balance.shared_term=outside",
    "algorithm.behaviour.rate=0.3",
    "trainer.checkpoint_every=2",
    "trainer.eval_every=2",
    "trainer.keep_last=9",
    "trainer.eval_prompts=1",
    "optimizer.lr=0.01",
    "rollout.steps=2",
    "rollout.batch_size=6",
]


# Settings that may change when a run is resumed.
FREE = [
    "trainer.steps=99",
    "trainer.checkpoint_every=7",
    "trainer.keep_last=1",
    "trainer.eval_every=0",
    "trainer.keep_every=5",
    "trainer.best=reward/colorfulness/mean",
    "trainer.eval_prompts=1",
    "trainer.pending_batches=1",
    "run.name=other",
    "run.dir=elsewhere",
    "trainer.micro_batch_size=3",
    "trainer.encode_ahead=3",
    "trainer.max_skipped=9",
    "rollout.batch_size=3",
    "model.embedding_cache=elsewhere",
    "model.offload=blocks",
    "model.gradient_checkpointing=true",
    "model.compile=true",
    "logging.images_every=9",
    "logging.wandb.project=p",
    "logging.trackers=[]",
    "launcher.nproc=2",
    "rewards.colorfulness.isolated=true",
    "+rewards.colorfulness.device=cpu",
    "+rewards.colorfulness={url: 'http://far:8600', token_env: MINE}",
]
WEIGHTS = {
    "lora": ("lora/pytorch_lora_weights.safetensors", "ema/pytorch_lora_weights.safetensors"),
    "full": ("transformer/diffusion_pytorch_model.safetensors", "ema/diffusion_pytorch_model.safetensors"),
}


def copied(finished: Path, folder: Path) -> Path:
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    return folder


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    clocks = ("time/", "throughput/", "balance/solve_seconds")
    return [{key: value for key, value in row.items() if not key.startswith(clocks)} for row in rows]


def assert_same_run(folder: Path, other: Path, train: str = "lora", *, stateful: bool = False) -> None:
    ours, theirs = (path / "checkpoints" / "step-00000004" for path in (folder, other))
    names = sorted(str(file.relative_to(ours)) for file in ours.rglob("*.safetensors"))
    state = ["balance.safetensors"] if stateful else []
    assert names == sorted(["behaviour.safetensors", "optimizer.safetensors", *state, *WEIGHTS[train]])
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    infos = [json.loads((path / "state.json").read_text())["info"] for path in (ours, theirs)]
    assert infos[0] == infos[1]
    assert timeless(read_rows(folder / "metrics.jsonl")) == timeless(read_rows(other / "metrics.jsonl"))
