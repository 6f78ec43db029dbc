"""The paper's preset: its numbers, planned without a download, and its very code on small models of the same classes."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from marble_cli.config.compose import compose
from marble_cli.metrics.jsonl import read
from marble_cli.policy.load import load_policy
from marble_cli.trainer.plan import plan
from marble_cli.trainer.run import train
from tests.policy.families.pipelines import sd3

PLUGINS = Path(__file__).parents[2] / "plugins"
REWARDS = ("pickscore", "hpsv2", "clipscore", "ocr", "geneval")


def tiny_models(plugin: str, name: str) -> ModuleType:
    """What a plugin's tests write its models with."""
    spec = importlib.util.spec_from_file_location(name, PLUGINS / plugin / "tests" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plan_has_the_papers_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(compose(["preset=sd35m_5r", f"run.dir={tmp_path}", "model.device=cpu"]))
    said = " ".join(capsys.readouterr().out.split())
    # The attention of 24 blocks, of which the last has no text output and the first 13 a second attention; rank 32.
    lora = (24 * 7 + 23 + 13 * 4) * 32 * (1536 + 1536)
    for part in (
        ", ".join(REWARDS), "48 prompts x 24 = 1152", "1152 images x 24 training times = 27648", "marble, amortized",
        "16, each with 72 images in 8 batches, and 192 micro-batches", f"2,243,171,520 parameters, LoRA {lora:,}",
        "of frozen weights", "of text encoders, while prompts are encoded", "data.root is not set", "geneval/train_metadata.jsonl",
    ):  # fmt: skip
        assert part in said, part


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, published: Path) -> list[str]:
    """The preset on small models: a pipeline of every class of SD3.5's, T5 among them, and the rewards' own."""
    folder = tmp_path_factory.mktemp("models")
    clips, geneval = (
        tiny_models("marble-reward-clip", "tiny_models"),
        tiny_models("marble-reward-geneval", "tiny_geneval"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sd3().save_pretrained(folder / "sd3")
    for seed, name in enumerate(("pickscore", "hpsv2", "clip")):
        clips.write_clip(folder / name, seed=seed)
    for name in ("detector", "colours"):
        (folder / name).mkdir()
    geneval.write_mask2former(folder / "detector")
    geneval.write_clip(folder / "colours")
    return [
        "preset=sd35m_5r", f"model.path={folder / 'sd3'}", f"model.embedding_cache={folder / 'embeddings'}",
        "model.resolution=32", "model.max_sequence_length=16", "model.device=cpu", f"model.clip={folder / 'clip'}",
        f"rewards.pickscore.model={folder / 'pickscore'}", f"rewards.hpsv2.model={folder / 'hpsv2'}",
        f"rewards.geneval.detector={folder / 'detector'}", f"rewards.geneval.clip={folder / 'colours'}",
        f"data.root={published}", "logging.wandb.mode=disabled", "trainer.steps=2",
    ]  # fmt: skip


def test_two_steps_on_small_models(small: list[str], tmp_path: Path) -> None:
    config = compose(
        [
            *small,
            f"run.dir={tmp_path}",
            "rollout.groups=6",
            "rollout.group_size=3",
            "rollout.steps=4",
            "trainer.eval_every=2",
        ]
    )
    assert train(config, resume="auto") == 0
    trained = [row for row in read(tmp_path / "metrics.jsonl") if row["phase"] == "train"]
    assert [row["balance/refresh"] for row in trained] == [1, 0]
    for row in trained:
        counts = {name: row[f"reward/{name}/applicable"] for name in REWARDS}
        assert counts == {"pickscore": 18, "hpsv2": 18, "clipscore": 18, "ocr": 6, "geneval": 6}
        assert all(row[f"reward/{name}/failed"] == 0 for name in REWARDS)
        assert all(row[f"reward/{name}/std"] > 0 for name in REWARDS[:3])
        assert row["grad_norm"] > 0
    policy = load_policy(config.model, seed=0)
    assert {p.dtype for p in policy.pipeline.transformer.parameters()} == {torch.bfloat16, torch.float32}
    cached = list(Path(config.model.embedding_cache or "").rglob("*.safetensors"))
    assert len(cached) >= 6
