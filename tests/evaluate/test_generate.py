"""Draw pictures of a target: seeded, guided and uncompiled, with the overrides of a run."""

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from marble_cli.checkpoint import store
from marble_cli.config.compose import load_resolved
from marble_cli.config.enums import OdeSolver, Switch
from marble_cli.config.schema import ModelConfig, RunConfig
from marble_cli.errors import RequestError
from marble_cli.evaluate.evaluate import evaluate
from marble_cli.evaluate.generate import generate
from marble_cli.evaluate.target import resolve_target
from marble_cli.policy.load import load_policy
from marble_cli.rollout.ode import make_scheduler
from marble_cli.run.build import build_optimizer
from marble_cli.run.state import initial_progress, pack
from marble_cli.seeds import noise
from tests.random_runs import write_random_run

RunConfigMaker = Callable[..., RunConfig]


def test_generated_pictures_are_seeded(run: Path, tmp_path: Path) -> None:
    def files(target: str, folder: str, seed: int) -> list[bytes]:
        written = generate(target, ["a red cup", "two boats"], tmp_path / folder, seed)
        assert [file.name for file in written] == ["000.png", "001.png"]
        return [file.read_bytes() for file in written]

    one = files(str(run), "a", 0)
    assert files(str(run), "b", 0) == one
    assert files(str(run), "c", 1) != one
    assert files(str(run / "checkpoints" / "step-00000001"), "d", 0) != one


def test_what_is_no_picture_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marble_cli.evaluate.generate.noise", lambda *_: torch.full((1, 4, 8, 8), torch.nan))
    with pytest.raises(RequestError, match=r"drew values that are not finite.*of 'a red cup'\. Expected"):
        generate(str(run), ["a red cup"], tmp_path / "none", 0)
    assert not (tmp_path / "none").exists()


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
    expected = policy.decode(x)[0][0]
    assert (drawn.int() - expected.int()).abs().max() <= 1
    assert expected.float().std() > 1


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

    plain = picture("base", *base_overrides)
    assert plain == picture(str(tmp_path / "untrained"))
    for more in ("rollout.steps=5", "rollout.solver=euler", "rollout.guidance_scale=3"):
        changed = picture("base", *base_overrides, more)
        assert changed == picture(str(tmp_path / "untrained"), more)
        assert changed != plain
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
        (["model.train=full"], "holds a LoRA, and model.train=full needs a whole network"),
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
