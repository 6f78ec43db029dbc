"""The paper's preset: its numbers, planned without a download, and its code on small models."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig

from marble_cli.config.compose import compose
from marble_cli.config.enums import OdeSolver, Quotes, RolloutTimes, TrainingTimes
from marble_cli.config.schema import EvaluationConfig
from marble_cli.metrics.jsonl import read_rows
from marble_cli.plan.plan import plan
from marble_cli.policy.load import load_policy
from marble_cli.policy.size import model_size
from marble_cli.policy.source import config_folder, read_json
from marble_cli.policy.trainable.ema import behaviour_eta, ema_decay
from marble_cli.policy.trainable.lora import add_adapter
from marble_cli.run.train import train
from tests.policy.families.pipelines import sd3

PLUGINS = Path(__file__).parents[2] / "plugins"
REWARDS = ("pickscore", "hpsv2", "clipscore", "ocr", "geneval")


def tiny_models(plugin: str, name: str) -> ModuleType:
    """Import the module with which a plugin's tests write its models."""
    spec = importlib.util.spec_from_file_location(name, PLUGINS / plugin / "tests" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PRESETS = ("sd35m_5r", "sd35m_5r_marble")
# Joint attention of 24 blocks, the last without a text output; the first 13 have a second attention too.
PUBLISHED, ALL = 24 * 7 + 23, 24 * 7 + 23 + 13 * 4


@pytest.mark.parametrize(
    ("overrides", "layers"),
    [(["preset=sd35m_5r"], PUBLISHED), (["~preset", "model=sd3", "rewards=colorfulness"], ALL)],
)
def test_the_lora_is_on_the_published_layers(overrides: list[str], layers: int) -> None:
    """Without storage: 191 layers and 18.8 million parameters, none of the second attention."""
    config = compose(overrides)
    folder = config_folder(config.model.path)
    assert folder is not None
    with torch.device("meta"):
        transformer = SD3Transformer2DModel.from_config(read_json(folder / "transformer" / "config.json"))
    lora = config.model.lora
    add_adapter(transformer, LoraConfig(r=lora.rank, target_modules=lora.target_modules), "default")
    down = {n: p.numel() for n, p in transformer.named_parameters() if ".lora_A." in n}
    up = {n: p.numel() for n, p in transformer.named_parameters() if ".lora_B." in n}
    assert len(down) == len(up) == layers
    count = sum(down.values()) + sum(up.values())
    assert count == layers * 32 * (1536 + 1536)
    if layers == PUBLISHED:
        assert (layers, round(count / 1e6, 1)) == (191, 18.8)
        assert not any(".attn2." in name for name in down)
    else:
        assert (layers, round(count / 1e6, 1)) == (243, 23.9)
    size = model_size(config.model)
    assert size is not None
    assert size.trained == count


def test_the_presets_are_the_published_recipe_and_ours() -> None:
    published, ours = (compose([f"preset={name}"]) for name in PRESETS)
    for config in (published, ours):
        assert [reward.plugin for reward in config.rewards.values()] == list(REWARDS)
        assert config.rewards["clipscore"].options["model"] == "openai/clip-vit-large-patch14"
        assert config.evaluation == EvaluationConfig(steps=40, solver=OdeSolver.euler)
        assert [ema_decay(config.trainer.ema, s) for s in (1, 50, 99)] == [2 / 11, 51 / 60, 0.9]
        assert behaviour_eta(config.algorithm.behaviour, 10) == pytest.approx(0.01)
    assert published.model.max_sequence_length == 128
    assert published.rollout.times is RolloutTimes.euler
    assert published.algorithm.training_times is TrainingTimes.any
    assert published.rewards["clipscore"].options["resize"] == "bilinear"
    assert {source.quotes for source in published.data.sources.values()} == {Quotes.straight}
    assert (
        replace(
            ours,
            run=published.run,
            data=published.data,
            rewards=published.rewards,
            model=replace(ours.model, max_sequence_length=128),
            rollout=replace(ours.rollout, times=RolloutTimes.euler),
            algorithm=replace(ours.algorithm, training_times=TrainingTimes.any, kl_every=1),
            balance=replace(ours.balance, refresh_fraction=1.0),
        )
        == published
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_takes_other_rewards_and_prompts(preset: str) -> None:
    config = compose([f"preset={preset}", "rewards=[colorfulness]", "data=files", "data.root=somewhere"])
    assert list(config.rewards) == ["colorfulness"]
    assert list(config.data.sources) == ["prompts"]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_plan_has_the_papers_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], preset: str
) -> None:
    plan(compose([f"preset={preset}", f"run.dir={tmp_path}", "model.device=cpu"]))
    said = " ".join(capsys.readouterr().out.split())
    lora = PUBLISHED * 32 * (1536 + 1536)
    for part in (
        ", ".join(REWARDS), "48 prompts x 24 = 1152", "1152 images x 24 training times = 27648",
        "marble, amortized",
        "16, each with 72 images in 8 batches, and 192 micro-batches",
        f"2,243,171,520 parameters, LoRA {lora:,}",
        "the first 64 held-out prompts of each source, 40 steps of euler", "of frozen weights",
        "of text encoders, while prompts are encoded", "data.root is not set", "geneval/train_metadata.jsonl",
    ):  # fmt: skip
        assert part in said, part


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, published: Path) -> list[str]:
    """The preset on small models: a pipeline of every class of SD3.5's, T5 too, and the rewards' own."""
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
        f"model.path={folder / 'sd3'}", f"model.embedding_cache={folder / 'embeddings'}",
        "model.resolution=32", "model.max_sequence_length=16", "model.device=cpu",
        f"model.clip={folder / 'clip'}",
        f"rewards.pickscore.model={folder / 'pickscore'}", f"rewards.hpsv2.model={folder / 'hpsv2'}",
        f"rewards.geneval.detector={folder / 'detector'}", f"rewards.geneval.clip={folder / 'colours'}",
        f"data.root={published}", "logging.wandb.mode=disabled", "trainer.steps=2",
    ]  # fmt: skip


# Of six prompts two have a word in quotes that is no text to be drawn.
@pytest.mark.parametrize(("preset", "judged"), [("sd35m_5r", 12), ("sd35m_5r_marble", 6)])
def test_two_steps_on_small_models(small: list[str], tmp_path: Path, preset: str, judged: int) -> None:
    config = compose(
        [
            f"preset={preset}",
            *small,
            f"run.dir={tmp_path}",
            "rollout.groups=6",
            "rollout.group_size=3",
            "rollout.steps=4",
            "trainer.eval_every=2",
            "evaluation.steps=4",  # of 40
        ]
    )
    assert train(config, resume="auto") == 0
    trained = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["phase"] == "train"]
    assert [row["balance/refresh"] for row in trained] == [1, 0]
    for row in trained:
        counts = {name: row[f"reward/{name}/applicable"] for name in REWARDS}
        assert counts == {"pickscore": 18, "hpsv2": 18, "clipscore": 18, "ocr": judged, "geneval": 6}
        assert all(row[f"reward/{name}/failed"] == 0 for name in REWARDS)
        assert all(row[f"reward/{name}/std"] > 0 for name in REWARDS[:3])
        assert row["grad_norm"] > 0
    policy = load_policy(config.model, seed=0)
    assert {p.dtype for p in policy.pipeline.transformer.parameters()} == {torch.bfloat16, torch.float32}
    cached = list(Path(config.model.embedding_cache or "").rglob("*.safetensors"))
    assert len(cached) >= 6
