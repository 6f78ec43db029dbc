"""Judging policies: comparisons, and what an evaluation is pointed at."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export
from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.config.compose import dump, load_resolved
from marble_cli.config.enums import OdeSolver, Switch
from marble_cli.config.schema import ModelConfig, RunConfig
from marble_cli.data.prompts import Prompt
from marble_cli.errors import CheckpointError, ConfigError, RequestError
from marble_cli.evaluate.compare import compare
from marble_cli.evaluate.evaluate import evaluate
from marble_cli.evaluate.generate import generate
from marble_cli.evaluate.score import Evaluation
from marble_cli.evaluate.statistics import paired_interval
from marble_cli.evaluate.target import Target, resolve_target
from marble_cli.evaluate.target import run_config as judging_config
from marble_cli.policy.load import load_policy
from marble_cli.rewards.scorer import Scores
from marble_cli.rollout.ode import make_scheduler
from marble_cli.run.build import build_optimizer
from marble_cli.run.state import initial_progress, pack
from marble_cli.seeds import noise
from tests.checkpoint.damage import relist
from tests.checkpoint.format_1 import rewrite_in_format_1
from tests.random_runs import write_random_run

RunConfigMaker = Callable[..., RunConfig]

LORA, EMA = (f"checkpoints/step-00000002/{name}/pytorch_lora_weights.safetensors" for name in ("lora", "ema"))


def evaluation(values: Tensor) -> Evaluation:
    applicable = ~values.isnan()
    names = [f"r{k}" for k in range(len(values))]
    prompts = [Prompt(str(i)) for i in range(values.shape[1])]
    images = torch.zeros(values.shape[1], 3, 2, 2, dtype=torch.uint8)
    return Evaluation(prompts, images, Scores(names, values, applicable, torch.zeros_like(applicable)))


NAN = torch.nan
ONE = evaluation(torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, NAN, 7.0, NAN], [NAN] * 4]).double())
OTHER = evaluation(torch.tensor([[0.0, 2.0, 2.0, 4.0], [4.0, 4.0, NAN, NAN], [1.0] * 4]).double())


def test_one_policy_is_summed_up_alone() -> None:
    results = compare(ONE, None)
    assert [(r.name, r.n, r.mean, r.difference, r.low) for r in results] == [
        ("r0", 4, 3.0, None, None),
        ("r1", 2, 6.0, None, None),
        ("r2", 0, None, None, None),
    ]
    assert ONE.summary() == {"r0": (3.0, pytest.approx(3.5**0.5), 4), "r1": (6.0, 1.0, 2)}


def test_two_policies_are_compared_on_the_images_that_both_have() -> None:
    first, second, third = compare(ONE, OTHER)
    assert (third.n, third.mean, third.difference) == (0, None, None)
    assert (first.n, first.mean, first.reference, first.difference) == (4, 3.0, 2.0, 1.0)
    assert (first.low, first.high) == paired_interval(np.array([1.0, 0.0, 1.0, 2.0]))
    assert (second.name, second.n, second.mean, second.reference, second.difference) == (
        "r1",
        1,
        5.0,
        4.0,
        1.0,
    )


@pytest.fixture(scope="module")
def run(
    run_config: RunConfigMaker, randomise: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run's folder with two checkpoints of random weights."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    config = run_config(f"run.dir={folder}")
    policy: Any = load_policy(config.model, 0)
    for step in (1, 2):
        randomise(policy, seed=step)
        progress = initial_progress(policy)
        progress.step = step
        progress.ema = {name: 0.5 * value for name, value in progress.ema.items()}
        store.save(
            folder, *pack(policy, build_optimizer(config, policy), progress), keep_last=9, best=step == 1
        )
    (folder / "config.yaml").write_text(dump(config))
    return folder


def test_a_target_is_a_checkpoint_a_run_or_the_base_model(run: Path) -> None:
    assert resolve_target("base") == Target("base", None, None)
    latest, first = resolve_target(str(run)), resolve_target(str(run / "checkpoints" / "step-00000001"))
    assert (latest.label, first.label) == ("demo/step-00000002", "demo/step-00000001")
    assert latest.config == first.config == run / "config.yaml"
    assert first.weights is not None
    _, _, ema = store.load(run / "checkpoints" / "step-00000001")
    assert all(torch.equal(first.weights[key], value) for key, value in ema.items())
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        resolve_target(str(run / "nowhere"))


def test_the_judging_config_is_the_runs(run: Path, tmp_path: Path, run_config: RunConfigMaker) -> None:
    base, target = resolve_target("base"), resolve_target(str(run))
    config = judging_config(["trainer.eval_prompts=1"], target)
    assert config == run_config(f"run.dir={run}", "trainer.eval_prompts=1")
    assert judging_config([], base, target) == run_config(f"run.dir={run}")
    assert judging_config([], base).model.path == "tiny"
    moved = Target("moved", target.weights, tmp_path / "run" / "checkpoints" / "step-00000001")
    assert moved.config is None
    with pytest.raises(ConfigError, match=r"trainer\.eval_prompts"):
        judging_config(["trainer.eval_promts=1"], target)


def test_a_policy_against_itself_differs_in_nothing(run: Path) -> None:
    report = evaluate(str(run), [str(run)], [], None)
    assert {r.name for r in report.rewards} == {"colorfulness", "compressibility"}
    assert all((r.difference, r.low, r.high) == (0.0, 0.0, 0.0) for r in report.rewards)
    assert all(r.n == 6 for r in report.rewards)


def test_two_policies_are_judged_on_the_same_noise(run: Path, tmp_path: Path) -> None:
    report = evaluate(str(run), ["base"], ["rewards.colorfulness.sources=[text]"], tmp_path)
    alone = {r.name: r for r in evaluate(str(run), [], [], None).rewards}
    results = {r.name: r for r in report.rewards}
    assert results["compressibility"].mean == pytest.approx(alone["compressibility"].mean)
    assert results["colorfulness"].n == 2
    assert results["colorfulness"].difference != 0.0
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == report.to_json()
    assert written["target"] == "demo/step-00000002"
    assert written["against"] == "base"
    assert written["prompts"] == 6
    assert written["rewards"]["colorfulness"]["interval"] == [
        results["colorfulness"].low,
        results["colorfulness"].high,
    ]
    assert (tmp_path / "images.png").stat().st_size > 1000


def test_a_report_outlives_its_pictures(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*rest: Any) -> None:
        raise ValueError("Expected end of text, found '$'")

    monkeypatch.setattr("marble_cli.evaluate.evaluate.image_grid", fail)
    (tmp_path / "images.png").write_bytes(b"of an earlier call")
    report = evaluate(str(run), [], [], tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report.to_json()
    assert not (tmp_path / "images.png").exists()
    assert "images.png could not be drawn: ValueError: Expected end of text" in caplog.text


def test_judging_leaves_the_order_of_targets_without_effect(run: Path) -> None:
    first, second = (str(run / "checkpoints" / f"step-0000000{step}") for step in (1, 2))
    there, back = evaluate(first, [second], [], None), evaluate(second, [first], [], None)
    for one, other in zip(there.rewards, back.rewards, strict=True):
        assert one.difference == pytest.approx(-other.difference)
        assert one.mean == pytest.approx(other.reference)


@pytest.mark.parametrize(
    "keys",
    [
        {"steps": 5},
        {"solver": "euler"},
        {"times": "euler"},
        {"guidance_scale": 3},
        {"steps": 6, "solver": "euler", "times": "solver", "guidance_scale": 1},
    ],
    ids=str,
)
def test_images_are_judged_as_evaluation_draws_them(run: Path, keys: dict[str, Any]) -> None:
    """As if the rollout were set so, in what is set; the run's own rollout differs from it."""

    def means(*overrides: str) -> list[float | None]:
        return [reward.mean for reward in evaluate(str(run), [], list(overrides), None).rewards]

    judged = means(*(f"evaluation.{key}={value}" for key, value in keys.items()))
    assert judged == means(*(f"rollout.{key}={value}" for key, value in keys.items()))
    assert judged != means()
    back = [f"evaluation.{key}={value}" for key, value in keys.items()]
    others = ["rollout.steps=9", "rollout.solver=dpm2", "rollout.times=solver", "rollout.guidance_scale=2"]
    others = [other for other in others if other.split("=")[0].split(".")[1] in keys]
    assert means(*back, *others) == judged


def test_generated_pictures_are_seeded(run: Path, tmp_path: Path) -> None:
    def files(target: str, folder: str, seed: int) -> list[bytes]:
        written = generate(target, ["a red cup", "two boats"], tmp_path / folder, seed)
        assert [file.name for file in written] == ["000.png", "001.png"]
        return [file.read_bytes() for file in written]

    one = files(str(run), "a", 0)
    assert files(str(run), "b", 0) == one
    assert files(str(run), "c", 1) != one
    assert files(str(run / "checkpoints" / "step-00000001"), "d", 0) != one


@pytest.mark.parametrize(("overrides", "expected"), [([], "false"), (["model.compile=true"], "true")])
def test_pictures_are_generated_uncompiled_unless_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], expected: str
) -> None:
    loaded = []

    def load(model: ModelConfig, seed: int) -> Any:
        loaded.append(model.compile)
        return load_policy(replace(model, compile=Switch.false), seed)

    monkeypatch.setattr("marble_cli.evaluate.target.load_policy", load)
    generate(str(run), ["a red cup"], tmp_path, 0, overrides)
    assert loaded == [Switch[expected]]


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["rollout.guidance_scale=4", "rollout.solver=euler"], 3),
        (["evaluation.guidance_scale=4", "evaluation.solver=euler", "evaluation.steps=5"], 5),
    ],
)
def test_generated_pictures_are_guided_as_the_runs_were(
    run_config: RunConfigMaker,
    randomise: Callable[..., None],
    tmp_path: Path,
    overrides: list[str],
    steps: int,
) -> None:
    """Against velocities that are put together here, integrated by hand with Euler's method."""
    folder = tmp_path / "guided"
    config = run_config(f"run.dir={folder}", *overrides)
    policy = write_random_run(config, randomise)
    (file,) = generate(str(folder), ["a red cup"], tmp_path, seed=7)
    policy.load_trained(resolve_target(str(folder)).weights)
    x = noise(7, "generate", 0, [0], policy.latent_shape)
    sigmas = make_scheduler(policy.scheduler_config(), OdeSolver.euler, steps, 4).sigmas
    with torch.no_grad():
        for now, then in itertools.pairwise(sigmas):
            there, away = (
                policy.velocity(x, now[None], policy.encode([text]), "trained") for text in ("a red cup", "")
            )
            x = x + (then - now) * (4 * there - 3 * away)
    drawn = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)
    expected = policy.decode(x)[0]
    assert (drawn.int() - expected.int()).abs().max() <= 1
    assert expected.float().std() > 1


@pytest.fixture(scope="module")
def older(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, its checkpoints in the format of the first release."""
    folder = tmp_path_factory.mktemp("older") / "demo"
    shutil.copytree(run, folder)
    for step in (1, 2):
        rewrite_in_format_1(folder / "checkpoints" / f"step-0000000{step}")
    return folder


def test_a_checkpoint_of_format_1_is_judged_drawn_and_exported_alike(
    run: Path, older: Path, tmp_path: Path
) -> None:
    assert (
        load_file(older / EMA)["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"]
        .ne(load_file(run / EMA)["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"])
        .all()
    )
    now, then = (evaluate(str(folder), [], [], None) for folder in (run, older))
    assert now.rewards == then.rewards
    pictures = [
        generate(str(folder), ["a red cup"], tmp_path / folder.parent.name, 0)[0] for folder in (run, older)
    ]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    for form in ExportFormat:
        files = [
            export(str(folder), tmp_path / folder.parent.name / form.value, form) for folder in (run, older)
        ]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_lora_without_alpha_is_not_guessed_at(older: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(older, folder)
    save_file(load_file(folder / LORA), folder / LORA)
    relist(folder / "checkpoints" / "step-00000002", "lora/pytorch_lora_weights.safetensors")
    with pytest.raises(CheckpointError, match="does not state the alpha of its LoRA"):
        export(str(folder), tmp_path / "exported")


@pytest.mark.parametrize("form", list(ExportFormat))
def test_an_export_overwrites_nothing(run: Path, tmp_path: Path, form: ExportFormat) -> None:
    file = export(str(run), tmp_path, form)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path in before:
        others = before.keys() - {path}
        for other in others:
            other.unlink()
        with pytest.raises(RequestError, match=f"{path.name} exists and is not overwritten"):
            export(str(run), tmp_path, form)
        assert list(tmp_path.iterdir()) == [path]
        for other in others:
            other.write_bytes(before[other])
    assert file in before


def test_the_base_is_drawn_and_judged_with_the_overrides_of_a_run(
    run: Path, base_overrides: list[str], tmp_path: Path
) -> None:
    """Those that the run was started with give its base model; an override more gives another picture."""
    policy: Any = load_policy(load_resolved(run / "config.yaml").model, 0)
    store.save(
        tmp_path / "untrained",
        *pack(policy, build_optimizer(load_resolved(run / "config.yaml"), policy), initial_progress(policy)),
        keep_last=1,
        best=False,
    )
    shutil.copy(run / "config.yaml", tmp_path / "untrained")

    def picture(target: str, *overrides: str) -> bytes:
        return generate(target, ["a red cup"], tmp_path, 3, overrides)[0].read_bytes()

    assert picture("base", *base_overrides) == picture(str(tmp_path / "untrained"))
    for more in ("rollout.steps=5", "rollout.solver=euler", "rollout.guidance_scale=3"):
        changed = picture("base", *base_overrides, more)
        assert changed == picture(str(tmp_path / "untrained"), more)
        assert changed != picture("base", *base_overrides)
    judged = evaluate("base", [], base_overrides, None)
    assert judged.rewards == evaluate(str(tmp_path / "untrained"), [], [], None).rewards


@pytest.mark.parametrize(
    "draw", [lambda *a: generate(a[0], ["a"], a[2], 0, a[1]), lambda *a: evaluate(*a[:1], [], a[1], None)]
)
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["preset=tiny"], "a preset would undo it"),
        (["model.lora.alpha=7"], "other LoRA settings: model.lora.alpha was 6 and is 7 here"),
        (["model.train=full"], "holds a LoRA, and model.train=full needs a whole transformer"),
        (["rollout.stepz=3"], "rollout.steps"),
    ],
)
def test_overrides_that_do_not_fit_a_checkpoint_are_refused_alike(
    run: Path, tmp_path: Path, draw: Callable[..., object], overrides: list[str], said: str
) -> None:
    with pytest.raises(RequestError, match=said) as error:
        draw(str(run), overrides, tmp_path)
    assert error.value.exit_code == 2
    assert not list(tmp_path.iterdir())
