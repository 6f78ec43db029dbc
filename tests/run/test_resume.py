"""A run that was stopped and continued is the run that was not, bit for bit; and what may be continued."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from marble_cli.balance import Solution, registry
from marble_cli.checkpoint import manifest, store
from marble_cli.checkpoint.resume import differences, find_checkpoint
from marble_cli.config.compose import compose, dump
from marble_cli.config.schema import OdeSolver, RolloutTimes, RunConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import CheckpointError, RequestError
from marble_cli.metrics.jsonl import read_rows
from marble_cli.policy.load import load_policy
from marble_cli.run.agreement import read_checkpoint
from marble_cli.run.build import build_optimizer
from marble_cli.run.loop import Trainer
from marble_cli.run.resume import restore
from marble_cli.run.state import initial_progress, pack
from marble_cli.run.train import train
from tests.checkpoint.format_1 import rewrite_in_format_1

RunConfigMaker = Callable[..., RunConfig]

# Step 1 refreshes, 2 and 3 take the cached direction, 4 refreshes again and smooths.
SETTINGS = [
    "balance.refresh_every=3", "balance.shared_term=outside", "algorithm.behaviour.rate=0.3",
    "trainer.checkpoint_every=2", "trainer.eval_every=2", "trainer.keep_last=9", "optimizer.lr=0.01",
]  # fmt: skip
WEIGHTS = {
    "lora": ("lora/pytorch_lora_weights.safetensors", "ema/pytorch_lora_weights.safetensors"),
    "full": ("transformer/diffusion_pytorch_model.safetensors", "ema/diffusion_pytorch_model.safetensors"),
}


@pytest.fixture(scope="module")
def finished(run_config: RunConfigMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(run_config("trainer.steps=4", f"run.dir={folder}", *SETTINGS), resume="auto") == 0
    return folder


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


def test_the_run_is_worth_comparing(finished: Path) -> None:
    """Weights, average and behaviour all moved and differ, the cache is filled, and every kind of step was made."""
    rows = read_rows(finished / "metrics.jsonl")
    assert [(row["step"], row["phase"]) for row in rows] == [
        (0, "eval"), (1, "train"), (2, "train"), (2, "eval"), (3, "train"), (4, "train"), (4, "eval"),
    ]  # fmt: skip
    assert [row["balance/refresh"] for row in rows if row["phase"] == "train"] == [1, 0, 0, 1]
    assert [row["behaviour/eta"] for row in rows if row["phase"] == "train"] == pytest.approx(
        [0.3, 0.6, 0.9, 0.95]
    )
    folder = finished / "checkpoints" / "step-00000004"
    lora, ema = (load_file(folder / name / store.WEIGHTS["lora"]) for name in ("lora", "ema"))
    behaviour = load_file(folder / "behaviour.safetensors")
    up = [key for key in lora if "lora_B" in key]
    assert all(lora[key].abs().max() > 1e-3 for key in up)
    assert not any(torch.equal(lora[key], ema[key]) for key in up)
    assert len(behaviour) == len(lora)
    assert not any(
        torch.equal(value, other) for value in behaviour.values() for other in (*lora.values(), *ema.values())
    )
    cache = json.loads((folder / "state.json").read_text())["info"]["cache"]
    assert sum(cache["alpha"]) == pytest.approx(1.0)
    assert rows[-1]["eval/composite"] != rows[3]["eval/composite"]


def test_stopping_after_two_steps_changes_nothing(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path
) -> None:
    for steps in (2, 4):
        config = run_config(f"trainer.steps={steps}", f"run.dir={tmp_path}", *SETTINGS)
        assert train(config, resume="auto") == 0
    assert_same_run(tmp_path, finished)


def test_a_kill_between_checkpoints_changes_nothing(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path
) -> None:
    """As after a SIGKILL in step 4: metrics beyond the last checkpoint, one torn line, a half-written folder."""
    folder = copied(finished, tmp_path / "killed")
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    (folder / "checkpoints" / "latest").write_text("step-00000002\n")
    (folder / "checkpoints" / ".step-00000004.tmp" / "lora").mkdir(parents=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:5]) + "\n" + lines[5][:30])
    config = run_config("trainer.steps=4", f"run.dir={folder}", *SETTINGS)
    assert train(config, resume="auto") == 0
    assert_same_run(folder, finished)


@pytest.mark.parametrize("alpha", [1, 4, 7])
def test_a_run_is_resumed_bit_for_bit_whatever_alpha_is_to_the_rank(
    run_config: RunConfigMaker, tmp_path: Path, alpha: int
) -> None:
    """Files hold alpha / 3 times B, rounded: not what is trained on."""
    ratio = (
        "model.lora.rank=3",
        f"model.lora.alpha={alpha}",
        "trainer.eval_every=0",
        "trainer.checkpoint_every=1",
    )
    for folder, parts in (("whole", [4]), ("parts", [1, 3, 4])):
        for steps in parts:
            config = run_config(f"trainer.steps={steps}", f"run.dir={tmp_path / folder}", *SETTINGS, *ratio)
            assert train(config, resume="auto") == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    step = tmp_path / "whole" / "checkpoints" / "step-00000004"
    kept, written = load_file(step / "optimizer.safetensors"), load_file(step / WEIGHTS["lora"][0])
    exact = {
        f"transformer.{name.removesuffix('|lora')}": value
        for name, value in kept.items()
        if name.endswith("|lora")
    }
    assert exact
    assert any((written[name].double() / alpha * 3).float().ne(value).any() for name, value in exact.items())


def test_a_checkpoint_of_format_1_is_resumed_bit_for_bit(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path
) -> None:
    folder = copied(finished, tmp_path / "older")
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    rewrite_in_format_1(folder / "checkpoints" / "step-00000002")
    (folder / "checkpoints" / "latest").write_text("step-00000002\n")
    assert train(run_config("trainer.steps=4", f"run.dir={folder}", *SETTINGS), resume="auto") == 0
    assert_same_run(folder, finished)


def test_full_weights_go_on_to_the_same_bytes(run_config: RunConfigMaker, tmp_path: Path) -> None:
    """After a kill in step 4, with the checkpoint of step 2; all that a run learns has moved by then."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = ("model.train=full", "trainer.steps=4", *SETTINGS, "optimizer.lr=0.001")
    assert train(run_config(*settings, f"run.dir={whole}"), resume="auto") == 0
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints" / "step-00000004")
    assert train(run_config(*settings, f"run.dir={killed}"), resume="auto") == 0
    assert_same_run(killed, whole, "full")
    trained, ema = (load_file(whole / "checkpoints/step-00000004" / name) for name in WEIGHTS["full"])
    behaviour = load_file(whole / "checkpoints/step-00000004/behaviour.safetensors")
    base = load_policy(run_config("model.train=full").model, 0).transformer.state_dict()
    still = {
        name
        for name in behaviour
        if any(torch.equal(a[name], b[name]) for a, b in combinations((base, trained, ema, behaviour), 2))
    }
    assert still <= {"transformer_blocks.1.attn.norm_added_q.weight"}  # it leads nowhere


class Tiring:
    """A balance of somebody else's: 1 / n at its n-th step, with a whole number as its state."""

    def __init__(self, *_: Any) -> None:
        self.asked = torch.tensor(0)

    def __call__(self, gram: torch.Tensor) -> Solution:
        self.asked += 1
        weights = torch.ones(len(gram), dtype=torch.float64) / self.asked
        return Solution(weights, weights, weights > 0, float("nan"), "tiring", 0, 0.0)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.asked = state["asked"].clone()


@pytest.fixture
def remembering(
    request: pytest.FixtureRequest, run_config: RunConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunConfig]:
    """A function of a folder and a number of steps that composes a run with a balance that has a state."""
    name = request.param
    if name.startswith("torchjd:"):
        pytest.importorskip("torchjd")
    entry = EntryPoint("tiring", f"{__name__}:Tiring", "marble.balances")
    monkeypatch.setattr(registry, "balances", lambda: {"tiring": entry})
    overrides = (*SETTINGS, "balance.mode=full", "balance.shared_term=inside", "trainer.eval_every=0")

    def make(folder: Path, steps: int) -> RunConfig:
        config = run_config(*overrides, f"run.dir={folder}", f"trainer.steps={steps}")
        return replace(config, balance=replace(config.balance, name=name))

    return make


REMEMBERING = pytest.mark.parametrize(
    "remembering", ["torchjd:GradVac", "torchjd:PCD", "tiring"], indirect=True
)


def resign(folder: Path) -> None:
    """Let the manifest of a step folder list the files that are there."""
    state = json.loads((folder / "state.json").read_text())
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.safetensors"))
    manifest.write(folder, store.step_of(folder), state["info"], files, state["scale"])


@REMEMBERING
def test_a_balance_with_a_state_goes_on_with_it(
    remembering: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """After a stop between steps, and after an error in a step whose gradients were balanced already."""
    apply = Trainer.apply

    def broken(self: Trainer, gradient: torch.Tensor) -> None:
        if self.progress.step == 1:
            self.checkpoints.mid_update = False  # nothing was changed yet
            raise OSError("a cable was pulled")
        apply(self, gradient)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "apply", broken)
        with pytest.raises(OSError, match="cable"):
            train(remembering(tmp_path / "torn", 4), resume="auto")
    assert (tmp_path / "torn" / "checkpoints" / "latest").read_text().strip() == "step-00000001"
    for folder, steps in (("whole", 4), ("parts", 2), ("parts", 4), ("torn", 4)):
        assert train(remembering(tmp_path / folder, steps), resume="auto") == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole", stateful=True)
    assert_same_run(tmp_path / "torn", tmp_path / "whole", stateful=True)
    assert "start anew" not in caplog.text


@REMEMBERING
def test_a_checkpoint_from_before_balances_had_a_state_still_loads(
    remembering: Callable[..., RunConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = tmp_path / "older"
    assert train(remembering(older, 2), resume="auto") == 0
    whole = copied(older, tmp_path / "whole")
    folder = older / "checkpoints" / "step-00000002"
    (folder / "balance.safetensors").unlink()
    resign(folder)
    ends = []
    for run in (older, whole):
        assert train(remembering(run, 4), resume="auto") == 0
        ends.append((run / "checkpoints" / "step-00000004" / WEIGHTS["lora"][0]).read_bytes())
    assert ends[0] != ends[1]
    assert caplog.text.count("holds no state of the balance") == 1
    assert "its averages start anew" in caplog.text


@REMEMBERING
def test_a_state_that_the_balance_refuses_is_a_damage(
    remembering: Callable[..., RunConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    assert train(remembering(run, 4), resume="auto") == 0
    folder = run / "checkpoints" / "step-00000004"
    save_file({"111.other": torch.ones(1)}, folder / "balance.safetensors")
    resign(folder)
    with pytest.raises(CheckpointError, match=r"refuses its state: .*Use another step folder"):
        train(remembering(tmp_path / "new", 5), resume=str(folder))
    assert train(remembering(run, 4), resume="auto") == 0
    assert "step-00000004 is not usable and was passed over" in caplog.text
    assert store.load(folder)[0].tensors["balance"]


def test_a_signal_writes_a_checkpoint_of_the_step_it_came_in(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trainer.step

    def signalled(self: Trainer, step: int) -> dict[str, Any]:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, step)

    config = run_config("trainer.steps=4", f"run.dir={tmp_path}", *SETTINGS)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", signalled)
        assert train(config, resume="auto") == 143
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-00000003"
    assert train(config, resume="auto") == 0
    assert_same_run(tmp_path, finished)


def test_what_is_packed_is_unpacked_bit_for_bit(
    run_config: RunConfigMaker, randomise: Callable[..., None], tmp_path: Path
) -> None:
    config = run_config()
    policy = load_policy(config.model, 0)
    optimizer, progress = build_optimizer(config, policy), initial_progress(policy)
    randomise(policy)
    for parameter in policy.parameters("trained").values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    progress.step, progress.best, progress.wandb_id = 12, 0.1 + 0.2, "abc"
    progress.best_step, progress.evaluated = 10, 11
    progress.ema = {name: torch.randn_like(value) for name, value in progress.ema.items()}
    progress.base_scores = {"a": [1 / 3, None]}
    state, lora, ema = pack(policy, optimizer, progress)
    folder = store.save(tmp_path, state, lora, ema, keep_last=1, best=False)

    other = load_policy(config.model, 1)
    other_optimizer = build_optimizer(config, other)
    back = restore(read_checkpoint(Ranks(), folder), other, other_optimizer, config)
    for adapter in ("trained", "behaviour"):
        for name, parameter in other.parameters(adapter).items():  # type: ignore[arg-type]
            assert torch.equal(parameter, policy.parameters(adapter)[name])  # type: ignore[arg-type]
    assert all(torch.equal(back.ema[name], progress.ema[name]) for name in progress.ema)
    assert (back.best_step, back.best_metric, back.evaluated) == (10, "eval/composite", 11)
    assert (back.step, back.best, back.wandb_id, back.base_scores) == (
        12,
        0.1 + 0.2,
        "abc",
        {"a": [1 / 3, None]},
    )
    ours, theirs = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for place, moments in ours.items():
        assert moments.keys() == theirs[place].keys()
        assert all(torch.equal(value, theirs[place][name]) for name, value in moments.items())


def test_a_continued_run_is_the_same_run_of_weights_and_biases(
    run_config: RunConfigMaker, tmp_path: Path
) -> None:
    """Kept offline; a run that only starts from another's checkpoint is one of its own."""
    pytest.importorskip("wandb")
    settings = ("logging.wandb.mode=offline", "trainer.checkpoint_every=1")

    def ids(folder: Path) -> set[str]:
        """W&B's ids of its folders, which are named offline-run-TIME-ID, and -1 behind if two began in one second."""
        return {path.name.split("-")[3] for path in (folder / "wandb").glob("offline-run-*")}

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for steps in (1, 2):
        assert train(run_config(f"trainer.steps={steps}", *settings, f"run.dir={ours}"), resume="auto") == 0
    assert train(run_config("trainer.steps=3", *settings, f"run.dir={theirs}"), resume=str(ours)) == 0
    assert len(ids(ours)) == 1
    assert len(ids(theirs)) == 1
    assert ids(ours) != ids(theirs)
    state = json.loads((ours / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert {state["info"]["wandb_id"]} == ids(ours)


def test_a_finished_run_is_left_alone(run_config: RunConfigMaker, finished: Path, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path / "again")
    before = {
        file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != "log.txt"
    }
    assert train(run_config("trainer.steps=4", f"run.dir={folder}", *SETTINGS), resume="auto") == 0
    assert {file: file.read_bytes() for file in before} == before


def test_its_config_repeats_the_run(finished: Path, run_config: RunConfigMaker) -> None:
    config = run_config("trainer.steps=4", f"run.dir={finished}", *SETTINGS)
    assert compose([], str(finished / "config.yaml")) == config


FREE = [
    "trainer.steps=99", "trainer.checkpoint_every=7", "trainer.keep_last=1", "trainer.eval_every=0",
    "trainer.keep_every=5", "trainer.best=reward/colorfulness/mean", "trainer.eval_prompts=1", "trainer.pending_batches=1", "run.name=other", "run.dir=elsewhere",
    "trainer.micro_batch_size=3", "trainer.encode_ahead=3", "trainer.max_skipped=9", "rollout.batch_size=3", "model.embedding_cache=elsewhere",
    "model.gradient_checkpointing=true", "model.compile=true", "logging.images_every=9", "logging.wandb.project=p", "launcher.nproc=2",
    "rewards.colorfulness.isolated=true", "+rewards.colorfulness={url: 'http://far:8600', token_env: MINE}",
]  # fmt: skip
BOUND = [
    "trainer.seed=1", "trainer.times_per_image=2", "trainer.ema.decay=0.5",
    "optimizer.lr=0.5", "model.train=full", "model.lora.rank=3", "model.path=elsewhere", "data.sources.text.weight=2", "data.root=other",
    "rewards.colorfulness.weight=2", "rewards.compressibility.quality=50", "~rewards.compressibility",
    "rewards=[compressibility,colorfulness]", "+rewards.third={plugin: colorfulness}",
    "balance=mgda", "balance.ema=0.1", "algorithm.beta=0.5", "rollout.groups=4", "rollout.times=euler",
    "algorithm.training_times=any", "algorithm.behaviour.delay=3", "trainer.ema.offset=1", "data.sources.text.quoted_as=seen",
    "evaluation.steps=4", "evaluation.solver=euler", "evaluation.times=euler", "evaluation.guidance_scale=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(run_config: RunConfigMaker) -> RunConfig:
    return run_config()


@pytest.mark.parametrize("override", FREE)
def test_a_run_may_go_on_with_another(run_config: RunConfigMaker, plain: RunConfig, override: str) -> None:
    assert all(one.may_change for one in differences(plain, run_config(override)))


@pytest.mark.parametrize("override", BOUND)
def test_a_run_may_not_go_on_with_another(
    run_config: RunConfigMaker, plain: RunConfig, tmp_path: Path, override: str
) -> None:
    other = run_config(override)
    bound = [one for one in differences(plain, other) if not one.may_change]
    assert bound
    (tmp_path / "config.yaml").write_text(dump(plain))
    with pytest.raises(RequestError, match="another configuration .* Nothing was changed") as refused:
        find_checkpoint(tmp_path, other, "auto")
    assert all(f"\n  {one}\n" in str(refused.value) for one in bound)


def aged(folder: Path) -> None:
    """Take out of a run's configuration every key that came later than the first release."""
    tree: Any = OmegaConf.load(folder / "config.yaml")
    for key in (
        "evaluation", "rollout.times", "algorithm.training_times", "algorithm.behaviour.delay", "trainer.ema.offset",
        "balance.reduce", *(f"data.sources.{name}.quotes" for name in tree.data.sources),
    ):  # fmt: skip
        group, _, last = key.rpartition(".")
        del (OmegaConf.select(tree, group) if group else tree)[last]
    OmegaConf.save(tree, folder / "config.yaml")


@pytest.mark.parametrize("named", [False, True])
def test_a_run_from_before_a_key_goes_on_as_it_was(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its shares are kept too: step 3 takes the cached direction."""
    old = copied(finished, tmp_path / "old")
    shutil.rmtree(old / "checkpoints" / "step-00000004")
    aged(old)
    folder = tmp_path / "new" if named else old
    config = run_config("trainer.steps=4", f"run.dir={folder}", *SETTINGS)
    assert train(config, resume=str(old) if named else "auto") == 0
    assert not any("anew" in text or "afresh" in text for text in caplog.messages)
    for name in WEIGHTS["lora"]:
        ours, theirs = (path / "checkpoints" / "step-00000004" / name for path in (folder, finished))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_key_that_a_run_lacks_can_be_set(finished: Path, tmp_path: Path) -> None:
    aged(copied(finished, tmp_path))
    config = compose(
        ["evaluation.steps=40", "evaluation.solver=euler", "rollout.times=euler"],
        str(tmp_path / "config.yaml"),
    )
    assert (config.evaluation.steps, config.evaluation.times) == (40, None)
    assert config.evaluation.solver is OdeSolver.euler
    assert config.rollout.times is RolloutTimes.euler


def test_another_drawing_of_evaluations_begins_at_a_new_start(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(
        *SETTINGS, "trainer.steps=5", f"run.dir={tmp_path}", "evaluation.steps=5", "evaluation.solver=euler"
    )
    assert train(config, resume=str(finished)) == 0
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["phase"]) for row in rows] == [(4, "eval"), (5, "train"), (5, "eval")]
    assert rows[0]["eval/composite"] == 0.0
    assert "drew images differently" in caplog.text
    assert rows[1]["balance/refresh"] == 0  # the balance goes on


def test_the_order_in_which_options_are_given_does_not_matter(run_config: RunConfigMaker) -> None:
    one = run_config("rewards.compressibility.quality=50", "rewards.compressibility.timeout=9")
    other = run_config("rewards.compressibility.timeout=9", "rewards.compressibility.quality=50")
    assert differences(one, other) == []


def test_a_fresh_folder_starts_a_fresh_run(run_config: RunConfigMaker, tmp_path: Path) -> None:
    for resume in ("auto", "never"):
        assert find_checkpoint(tmp_path, run_config(), resume) is None


def test_never_means_never(run_config: RunConfigMaker, finished: Path) -> None:
    with pytest.raises(RequestError, match="--resume never"):
        find_checkpoint(finished, run_config("trainer.steps=4", *SETTINGS), "never")


def test_a_damaged_checkpoint_is_passed_over_and_named(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(finished, tmp_path / "damaged")
    file = folder / "checkpoints" / "step-00000004" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    config = run_config("trainer.steps=4", f"run.dir={folder}", *SETTINGS)
    found = find_checkpoint(folder, config, "auto")
    assert found is not None
    assert found.name == "step-00000002"
    assert "step-00000004 is not usable and was passed over" in caplog.text
    assert train(config, resume="auto") == 0
    assert_same_run(folder, finished)


def test_a_named_checkpoint_is_taken(run_config: RunConfigMaker, finished: Path, tmp_path: Path) -> None:
    named = finished / "checkpoints" / "step-00000002"
    config = run_config("trainer.steps=4", f"run.dir={tmp_path}", *SETTINGS)
    assert find_checkpoint(tmp_path, config, str(named)) == named
    assert find_checkpoint(finished, config, str(named)) == named
    assert train(config, resume=str(named)) == 0
    assert compose([], str(tmp_path / "config.yaml")) == config
    ours, theirs = (
        path / "checkpoints" / "step-00000004" / "ema" / store.WEIGHTS["lora"]
        for path in (tmp_path, finished)
    )
    assert ours.read_bytes() == theirs.read_bytes()
    assert find_checkpoint(tmp_path, config, "auto") == tmp_path / "checkpoints" / "step-00000004"


def test_a_named_checkpoint_does_not_overwrite_another_run(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(dump(run_config("trainer.seed=1")))
    with pytest.raises(RequestError, match="another configuration"):
        find_checkpoint(tmp_path, run_config(*SETTINGS), str(finished))


def test_a_checkpoint_of_other_rewards_gives_its_weights_and_no_balance(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sequential training: one reward after another, from where the last run ended."""
    settings = ("rewards=[compressibility]", "trainer.steps=5", "trainer.eval_every=2", f"run.dir={tmp_path}")
    assert train(run_config(*settings), resume=str(finished)) == 0
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["phase"]) for row in rows] == [(4, "eval"), (5, "train"), (5, "eval")]
    assert rows[0]["eval/composite"] == 0.0
    assert rows[1]["balance/refresh"] == 1
    assert rows[1]["balance/alpha/compressibility"] == 1.0
    assert "was trained on colorfulness, compressibility" in caplog.text


def test_a_checkpoint_of_another_balance_gives_no_cache(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config("balance=mgda", "trainer.steps=5", f"run.dir={tmp_path}")
    assert train(config, resume=str(finished)) == 0
    assert "another balance" in caplog.text
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["balance/refresh"] == 1


def test_a_checkpoint_of_rewards_that_are_not_installed_still_gives_its_weights(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path
) -> None:
    origin = copied(finished, tmp_path / "theirs")
    written = (origin / "config.yaml").read_text()
    (origin / "config.yaml").write_text(written.replace("plugin: colorfulness", "plugin: gone"))
    config = run_config("rewards=[compressibility]", "trainer.steps=5", f"run.dir={tmp_path / 'ours'}")
    assert train(config, resume=str(origin)) == 0


def test_a_named_checkpoint_must_exist(run_config: RunConfigMaker, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        find_checkpoint(tmp_path, run_config(), str(tmp_path / "nowhere"))
