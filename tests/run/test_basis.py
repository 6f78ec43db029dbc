"""What the scores of evaluations depend on, and runs that are resumed with evaluations on another basis."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from marble_cli.config.schema import RunConfig
from marble_cli.data.conditions import Condition
from marble_cli.data.prompts import Prompt
from marble_cli.metrics.history import read_metrics
from marble_cli.metrics.jsonl import read_rows
from marble_cli.run.basis import OTHERWISE, describe_changes, find_basis
from marble_cli.run.train import train
from tests.run.runs import FREE, SETTINGS, copied

RunConfigMaker = Callable[..., RunConfig]


@pytest.mark.parametrize(
    "overrides", [["evaluation.steps=5"], ["+eval_rewards.watched={plugin: colorfulness}"]]
)
def test_a_run_from_the_checkpoint_of_another_has_a_start_of_its_own(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, overrides: list[str]
) -> None:
    config = run_config(*SETTINGS, "trainer.steps=5", f"run.dir={tmp_path}", *overrides)
    assert train(config, resume=str(finished)) == 0
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["phase"]) for row in rows] == [(4, "eval"), (5, "train"), (5, "eval")]
    assert (rows[0]["eval/start"], rows[0]["eval/composite"]) == (1, 0.0)
    assert rows[1]["balance/refresh"] == 0  # the balance continues
    assert all(f"reward/{name}/change" in rows[2] for name in (*config.rewards, *config.eval_rewards))
    old = [{"step": 0, "phase": "eval", "eval/start": 1}, {"step": 2, "phase": "eval"}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*old, *rows)))
    assert read_metrics(tmp_path).held_out == [rows[0], rows[2]], "what the last is compared with comes first"


def test_number_of_prompts_that_changes_starts_evaluations_anew_once(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder's config.yaml keeps the first number, so the checkpoint has to say which one it is of."""
    copied(finished, tmp_path)
    for steps, anew in ((5, True), (6, False)):
        caplog.clear()
        more = (f"trainer.steps={steps}", "trainer.eval_prompts=2", f"run.dir={tmp_path}")
        assert train(run_config(*SETTINGS, *more), resume="auto") == 0
        assert ("drew images differently" in caplog.text) is anew
    held_out = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["phase"] == "eval"]
    assert [row["step"] for row in held_out] == [0, 2, 4, 5, 6]
    assert [row["eval/composite"] == 0 for row in held_out] == [True, False, True, False, False]


SAME, IMAGES, PROMPTS, REWARDS = "", *OTHERWISE.values()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        *((override, SAME) for override in FREE if "eval_prompts" not in override),
        ("rewards.colorfulness.weight=2", SAME),
        ("rewards.colorfulness.role=guard", SAME),
        ("trainer.eval_prompts=1", IMAGES),
        ("trainer.seed=1", IMAGES),
        ("rewards.compressibility.quality=50", REWARDS),
        ("rewards.colorfulness.sources=[text]", REWARDS),
        ("rewards.colorfulness.only_if='compressibility > 0'", REWARDS),
        ("+eval_rewards.watched={plugin: colorfulness}", REWARDS),
        ("~rewards.compressibility", REWARDS),
    ],
)
def test_basis_is_what_scores_depend_on(
    run_config: RunConfigMaker, plain: RunConfig, override: str, said: str
) -> None:
    before, now = (find_basis(config, [Prompt("a")]) for config in (plain, run_config(override)))
    assert describe_changes(before, now) == said


def test_basis_has_everything_of_a_prompt_but_its_place(plain: RunConfig, tmp_path: Path) -> None:
    pictures = [tmp_path / name for name in ("one", "same", "other")]
    for picture, content in zip(pictures, "112", strict=True):
        picture.write_text(content)
    one, same, other = (Condition(path.name, path) for path in pictures)
    prompt = Prompt("a", {"b": [1], "c": 2}, "s", images=(one,), where="line 1")
    again = Prompt("a", {"c": 2, "b": [1]}, "s", images=(same,), where="line 2")
    changes = [{"text": "b"}, {"metadata": {"b": [2], "c": 2}}, {"source": "t"}, {"images": (other,)}]
    bases = [find_basis(plain, [replace(prompt, **change)]) for change in changes]  # type: ignore[arg-type]
    before = find_basis(plain, [prompt])
    assert before == find_basis(plain, [again])
    assert [describe_changes(before, now) for now in bases] == [PROMPTS] * len(changes)
