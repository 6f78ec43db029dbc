"""Settings that may change when a run is resumed, and the use of checkpoints of other runs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from marble_cli.balance.cache import DirectionCache
from marble_cli.checkpoint import store
from marble_cli.checkpoint.resume import differences, find_checkpoint
from marble_cli.config.compose import compose, dump
from marble_cli.config.enums import OdeSolver, RolloutTimes
from marble_cli.config.schema import RunConfig
from marble_cli.errors import CheckpointError, RequestError
from marble_cli.metrics.jsonl import read_rows
from marble_cli.run.checkpoints import Checkpoints
from marble_cli.run.loop import Trainer
from marble_cli.run.resume import prepare_folder
from marble_cli.run.state import Progress
from marble_cli.run.train import train
from tests.run.runs import FREE, SETTINGS, WEIGHTS, copied

RunConfigMaker = Callable[..., RunConfig]


BOUND = [
    "trainer.seed=1",
    "trainer.times_per_image=2",
    "trainer.ema.decay=0.5",
    "optimizer.lr=0.5",
    "optimizer.schedule=cosine",
    "optimizer.warmup=1",
    "model.train=full",
    "model.lora.rank=3",
    "model.path=elsewhere",
    "data.sources.text.weight=2",
    "data.root=other",
    "rewards.colorfulness.weight=2",
    "rewards.compressibility.quality=50",
    "~rewards.compressibility",
    "rewards=[compressibility,colorfulness]",
    "+rewards.third={plugin: colorfulness}",
    "balance=mgda",
    "balance.ema=0.1",
    "algorithm.beta=0.5",
    "rollout.groups=4",
    "rollout.times=euler",
    "algorithm.training_times=any",
    "algorithm.behaviour.delay=3",
    "trainer.ema.offset=1",
    "data.sources.text.quoted_as=seen",
    "evaluation.steps=4",
    "evaluation.solver=euler",
    "evaluation.times=euler",
    "evaluation.guidance_scale=2",
]


@pytest.mark.parametrize("override", FREE)
def test_resume_with_a_free_setting_is_allowed(
    run_config: RunConfigMaker, plain: RunConfig, override: str
) -> None:
    assert all(one.may_change for one in differences(plain, run_config(override)))


@pytest.mark.parametrize("override", BOUND)
def test_resume_with_a_bound_setting_is_refused(
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
    """Remove every key from a run's configuration that was added after the first release."""
    tree: Any = OmegaConf.load(folder / "config.yaml")
    for key in (
        "evaluation",
        "rollout.times",
        "algorithm.training_times",
        "algorithm.behaviour.delay",
        "trainer.ema.offset",
        "optimizer.schedule",
        "optimizer.warmup",
        "balance.reduce",
        *(f"data.sources.{name}.quotes" for name in tree.data.sources),
    ):
        group, _, last = key.rpartition(".")
        del (OmegaConf.select(tree, group) if group else tree)[last]
    OmegaConf.save(tree, folder / "config.yaml")


@pytest.mark.parametrize("named", [False, True])
def test_resume_of_a_run_without_newer_keys_is_exact(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The cached shares are kept too: step 3 uses the cached direction."""
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


def test_newer_key_can_be_set_on_an_older_configuration(finished: Path, tmp_path: Path) -> None:
    aged(copied(finished, tmp_path))
    config = compose(
        ["evaluation.steps=40", "evaluation.solver=euler", "rollout.times=euler"],
        str(tmp_path / "config.yaml"),
    )
    assert (config.evaluation.steps, config.evaluation.times) == (40, None)
    assert config.evaluation.solver is OdeSolver.euler
    assert config.rollout.times is RolloutTimes.euler


@pytest.mark.parametrize(
    "content",
    [
        "",
        "- 1\n",
        "a: [1,\n",
        "rewards: null\n",
        "rewards: x\n",
        "rewards: {a: 1}\n",
        "rewards: {a: {plugin: a, aspects: 3}}\n",
        "evaluation: null\n",
    ],
)
def test_damaged_configuration_beside_a_named_checkpoint_is_refused(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr("marble_cli.run.train.load_policy", None)  # it is found before the model is loaded
    named = tmp_path / "theirs" / "checkpoints" / "step-00000002"
    shutil.copytree(finished / "checkpoints" / "step-00000002", named)
    (tmp_path / "theirs" / "config.yaml").write_text(content)
    with pytest.raises(CheckpointError, match=r"theirs/config\.yaml, the configuration .* is damaged: "):
        train(run_config(*SETTINGS, f"run.dir={tmp_path / 'ours'}"), resume=str(named))


def test_checkpoint_of_another_run_takes_the_place_of_ones_own(finished: Path, tmp_path: Path) -> None:
    own, progress = copied(finished, tmp_path), Progress(2, DirectionCache(), {}, {})
    prepare_folder(own, own / "checkpoints" / "step-00000002", progress)
    assert [store.step_of(path) for path in store.steps(own)] == [2]
    prepare_folder(own, finished / "checkpoints" / "step-00000002", progress)
    assert store.steps(own) == []
    assert (own / "checkpoints" / "abandoned-step-00000002" / "state.json").is_file()


def test_order_of_options_is_no_difference(run_config: RunConfigMaker) -> None:
    one = run_config("rewards.compressibility.quality=50", "rewards.compressibility.timeout=9")
    other = run_config("rewards.compressibility.timeout=9", "rewards.compressibility.quality=50")
    assert differences(one, other) == []


def test_empty_folder_has_no_checkpoint(run_config: RunConfigMaker, tmp_path: Path) -> None:
    for resume in ("auto", "never"):
        assert find_checkpoint(tmp_path, run_config(), resume) is None


def test_resume_never_refuses_an_existing_run(run_config: RunConfigMaker, finished: Path) -> None:
    with pytest.raises(RequestError, match="--resume never"):
        find_checkpoint(finished, run_config("trainer.steps=4", *SETTINGS), "never")


def test_named_checkpoint_is_used(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
    last = tmp_path / "checkpoints" / "step-00000004"
    assert find_checkpoint(tmp_path, config, "auto") == last
    assert "anew" not in caplog.text
    first, *_, end = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["phase"] == "eval"]
    assert (first["step"], first["eval/start"], first["eval/composite"]) == (2, 1, 0.0), "a start of its own"
    change = end["reward/colorfulness/mean"] - first["reward/colorfulness/mean"]
    assert end["reward/colorfulness/change"] == pytest.approx(change)
    assert store.load(last)[0].info["best_step"] == (4 if end["eval/composite"] > 0 else None)


@pytest.mark.parametrize("ending", ["error", "kill"])
def test_run_that_began_from_another_run_never_starts_over(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """However early it ends, resumed it goes on after the checkpoint that it was given."""
    named = finished / "checkpoints" / "step-00000002"
    config = run_config("trainer.steps=3", f"run.dir={tmp_path}", *SETTINGS)

    def ended(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "find_direction", ended)
        if ending == "kill":
            patched.setattr(Checkpoints, "_keep", ended)
        with pytest.raises(KeyboardInterrupt):
            train(config, resume=str(named))
    assert train(config, resume="auto") == 0
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["phase"]) for row in rows] == [(2, "eval"), (3, "train"), (3, "eval")]
    assert [row.get("eval/start") for row in rows] == [1, None, None]


def test_copied_checkpoint_without_a_configuration_gives_no_cache(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing says which rewards its shares belong to."""
    copy = copied(finished / "checkpoints" / "step-00000002", tmp_path / "copy")
    config = run_config("trainer.steps=3", f"run.dir={tmp_path / 'run'}", *SETTINGS)
    assert train(config, resume=str(copy)) == 0
    assert "has no config.yaml of its run; this run's balance starts anew" in caplog.text
    assert read_rows(tmp_path / "run" / "metrics.jsonl")[1]["balance/refresh"] == 1


def test_named_checkpoint_in_the_folder_of_another_run_is_refused(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(dump(run_config("trainer.seed=1")))
    with pytest.raises(RequestError, match="another configuration"):
        find_checkpoint(tmp_path, run_config(*SETTINGS), str(finished))


def test_checkpoint_of_other_rewards_gives_only_its_weights(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sequential training uses one reward after another."""
    settings = ("rewards=[compressibility]", "trainer.steps=5", "trainer.eval_every=2", f"run.dir={tmp_path}")
    assert train(run_config(*settings), resume=str(finished)) == 0
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["phase"]) for row in rows] == [(4, "eval"), (5, "train"), (5, "eval")]
    assert rows[0]["eval/composite"] == 0.0
    assert rows[1]["balance/refresh"] == 1
    assert rows[1]["balance/alpha/compressibility"] == 1.0
    assert "was trained on colorfulness, compressibility" in caplog.text


def test_checkpoint_of_another_balance_gives_no_cache(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config("balance=mgda", "trainer.steps=5", f"run.dir={tmp_path}")
    assert train(config, resume=str(finished)) == 0
    assert "another balance" in caplog.text
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["balance/refresh"] == 1


def test_checkpoint_of_uninstalled_rewards_gives_its_weights(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path
) -> None:
    origin = copied(finished, tmp_path / "theirs")
    written = (origin / "config.yaml").read_text()
    (origin / "config.yaml").write_text(written.replace("plugin: colorfulness", "plugin: gone"))
    config = run_config("rewards=[compressibility]", "trainer.steps=5", f"run.dir={tmp_path / 'ours'}")
    assert train(config, resume=str(origin)) == 0


def test_missing_named_checkpoint_is_refused(run_config: RunConfigMaker, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        find_checkpoint(tmp_path, run_config(), str(tmp_path / "nowhere"))
