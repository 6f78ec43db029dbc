"""A run that starts from a LoRA: `model.lora.init`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export
from marble_cli.config.compose import compose
from marble_cli.config.schema import RunConfig
from marble_cli.errors import CheckpointError
from marble_cli.evaluate.evaluate import evaluate
from marble_cli.metrics.jsonl import read_rows
from marble_cli.plan.plan import plan
from marble_cli.policy.foreign import fit_lora
from marble_cli.run.train import train
from tests.random_runs import write_random_run

RunConfigMaker = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def other(
    run_config: RunConfigMaker, randomise: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run with random weights, rank 2 and alpha 6."""
    folder = tmp_path_factory.mktemp("runs") / "other"
    config = run_config(f"run.dir={folder}")
    write_random_run(config, randomise)
    return folder


@pytest.mark.parametrize("exported", [False, True])
def test_a_run_starts_where_the_lora_stands(
    run_config: RunConfigMaker, other: Path, tmp_path: Path, exported: bool
) -> None:
    """With a larger rank and another alpha; its first evaluation is that of the LoRA, and it trains on."""
    init = export(str(other), tmp_path / "lora") if exported else other
    settings = ("model.lora.rank=4", "model.lora.alpha=4", "trainer.steps=2", "trainer.eval_every=2")
    config = run_config(f"run.dir={tmp_path / 'run'}", f"model.lora.init={init}", *settings)
    assert train(config, resume="auto") == 0
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["phase"] == "eval"]
    for result in evaluate(str(other), [], [], None).rewards:
        assert rows[0][f"reward/{result.name}/mean"] == pytest.approx(result.mean, rel=1e-2)
    _, trained, _ = store.load(tmp_path / "run" / "checkpoints" / "step-00000002")
    up = trained["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"]
    assert up[:, :2].abs().mean() > 0.05
    assert (up[:, 2:] != 0).any()  # the further ranks train too
    assert compose([], str(tmp_path / "run" / "config.yaml")).model.lora.init == str(init)


def test_a_resumed_run_does_not_need_the_lora_again(
    run_config: RunConfigMaker, other: Path, tmp_path: Path
) -> None:
    file = export(str(other), tmp_path / "lora")
    config = run_config(f"run.dir={tmp_path / 'run'}", f"model.lora.init={file}", "trainer.steps=1")
    assert train(config, resume="auto") == 0
    file.unlink()
    config.trainer.steps = 2
    assert train(config, resume="auto") == 0


def test_the_fitted_lora_adds_to_each_layer_what_the_given_one_adds(run_config: RunConfigMaker) -> None:
    model = run_config("model.lora.rank=5", "model.lora.alpha=7").model
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 6, generator=draw), torch.randn(8, 2, generator=draw)
    state = {"transformer.a.lora_A.weight": down, "transformer.a.lora_B.weight": up}
    shapes = {
        f"{layer}.lora_{part}.weight": shape
        for layer in "ab"
        for part, shape in (("A", (5, 6)), ("B", (8, 5)))
    }
    fitted = fit_lora(state, model, shapes, "x", seed=1)
    added = 7 / 5 * fitted["transformer.a.lora_B.weight"] @ fitted["transformer.a.lora_A.weight"]
    torch.testing.assert_close(added, up @ down)
    assert not fitted["transformer.b.lora_B.weight"].any()
    assert fitted["transformer.b.lora_A.weight"].std() == pytest.approx(1 / 5, rel=0.3)
    assert fitted["transformer.a.lora_A.weight"][2:].std() > 0.1
    again = fit_lora(state, model, shapes, "x", seed=1)
    assert all(torch.equal(value, again[key]) for key, value in fitted.items())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.lora.rank=1"], r"lora_A.weight \[2, 16\] has rank 2, and model.lora.rank=1 is less"),
        (
            ["model.lora.target_modules=[to_q]"],
            r"lora_A.weight \[2, 16\] is of a layer that model.lora.target_modules leaves out",
        ),
        (["model.train=full"], "expected a LoRA, and model.train=lora"),
        (["model.lora.init=base"], "model.lora.init=base: expected a LoRA"),
        (["model.lora.init=./nowhere"], "nowhere is neither a checkpoint"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    run_config: RunConfigMaker, other: Path, tmp_path: Path, overrides: list[str], said: str
) -> None:
    config = run_config(f"run.dir={tmp_path / 'run'}", f"model.lora.init={other}", *overrides)
    for begin in (plan, partial(train, resume="auto")):
        with pytest.raises(CheckpointError, match=said) as error:
            begin(config)
    assert error.value.exit_code == 2
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_plan_names_the_start_and_finds_its_faults(
    run_config: RunConfigMaker, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(run_config(f"run.dir={tmp_path / 'run'}", f"model.lora.init={other}"))
    assert "starts from" in capsys.readouterr().out
    save_file({"other.lora_A.weight": torch.ones(2, 16)}, tmp_path / "strange.safetensors")
    with pytest.raises(CheckpointError, match=r"other.lora_A.weight \[2, 16\] belongs to no linear layer"):
        plan(run_config(f"run.dir={tmp_path / 'run'}", f"model.lora.init={tmp_path / 'strange.safetensors'}"))
