"""How images are evaluated: size, images per prompt, prompts and seed; in a run and by `marble eval`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.config.compose import dump
from marble_cli.config.evaluation import INHERITS, resolve_evaluation
from marble_cli.config.schema import EvaluationConfig, RunConfig
from marble_cli.distributed.layout import Replicated
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import ConfigError, RequestError
from marble_cli.evaluate.evaluate import evaluate, held_out_prompts
from marble_cli.evaluate.score import make_evaluator
from marble_cli.metrics.jsonl import read_rows
from marble_cli.plan.groups import check_groups
from marble_cli.policy.load import load_policy
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.scorer import Scorer, open_scorer
from marble_cli.rollout.collect import Rollout
from marble_cli.run.train import train

RunConfigMaker = Callable[..., RunConfig]


def test_every_null_inherits_and_nothing_else(run_config: RunConfigMaker) -> None:
    config = run_config("trainer.seed=5")
    nulls = {key for key, value in vars(EvaluationConfig()).items() if value is None}
    assert nulls == set(INHERITS)
    drawn = resolve_evaluation(config)
    assert (drawn.steps, drawn.resolution, drawn.prompts, drawn.seed) == (3, 16, 2, 5)
    own = resolve_evaluation(
        run_config(
            "evaluation.steps=9", "evaluation.resolution=8", "evaluation.prompts=1", "evaluation.seed=0"
        )
    )
    assert (own.steps, own.resolution, own.prompts, own.seed) == (9, 8, 1, 0)


@pytest.fixture(scope="module")
def policy(run_config: RunConfigMaker, randomise: Callable[..., None]) -> Any:
    policy: Any = load_policy(run_config().model, 0)
    randomise(policy)
    return policy


def judged(config: RunConfig, policy: Any) -> Any:
    with open_scorer(config.rewards, "cpu") as scorer:
        return make_evaluator(config, policy, scorer, held_out_prompts(config)).score("trained")


def test_ranks_leave_an_evaluation_together(
    run_config: RunConfigMaker, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of one rank's drawing reaches the others, which would wait for its scores."""
    told = []

    class Telling(Replicated):
        @contextmanager
        def raise_together(self) -> Iterator[None]:
            try:
                yield
            except Exception as error:
                told.append(error)
                raise

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Rollout, "collect", fail)
    config = run_config()
    evaluator = make_evaluator(
        config, policy, Scorer([], 1), held_out_prompts(config), Telling(Ranks.alone())
    )
    with pytest.raises(torch.OutOfMemoryError) as raised:
        evaluator.score("trained")
    assert told == [raised.value]


def test_images_are_judged_at_their_own_size(run_config: RunConfigMaker, policy: Any) -> None:
    """As a policy that was loaded at that size draws them; the policy of the run keeps its size."""
    small = judged(run_config("evaluation.resolution=8"), policy)
    assert small.images[0].shape[-2:] == (8, 8)
    assert policy.latent_shape == (4, 4, 4)
    config = run_config("model.resolution=8")
    other: Any = load_policy(config.model, 0)
    other.load_trained(policy.trained_state())
    assert torch.equal(judged(config, other).scores.values, small.scores.values)
    assert judged(run_config(), policy).images[0].shape[-2:] == (16, 16)


def test_a_size_that_does_not_fit_is_refused_by_its_key(run_config: RunConfigMaker, policy: Any) -> None:
    for size, said in ((9, "a multiple of 8"), (64, "at most 32")):
        config = run_config(f"evaluation.resolution={size}")
        with pytest.raises(RequestError, match=rf"evaluation.resolution={size}: expected {said}"):
            make_evaluator(config, policy, Scorer([], 1), [])


def test_several_images_of_a_prompt_differ_and_stay_together(run_config: RunConfigMaker, policy: Any) -> None:
    config = run_config("evaluation.images_per_prompt=3", "evaluation.prompts=1", "rollout.batch_size=4")
    evaluation = judged(config, policy)
    assert evaluation.scores.values.shape == (2, 9)
    assert evaluation.sources == ["general"] * 3 + ["text"] * 3 + ["compositional"] * 3
    assert evaluation.prompt_indices.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(set(evaluation.scores.values[0].tolist())) == 9
    assert evaluation.diversity.shape == (3,)
    assert (evaluation.diversity > 0.1).all()
    alone = judged(run_config("evaluation.prompts=1"), policy)
    assert alone.diversity is None
    assert torch.equal(alone.images[0], evaluation.images[0])  # the first image of the first prompt


def test_another_seed_gives_other_images(run_config: RunConfigMaker, policy: Any) -> None:
    values: list[Tensor] = [
        judged(run_config(*more), policy).scores.values
        for more in ([], ["evaluation.seed=7"], ["trainer.seed=7"])
    ]
    assert not torch.equal(values[0], values[1])
    assert torch.equal(values[1], values[2])


def groupwise(name: str) -> dict[str, Declaration]:
    own, other = (Declaration("", (), (None, None), "", "", groupwise=flag) for flag in (True, False))
    return {"colorfulness": other, "compressibility": other} | {name: own}


def test_groupwise_rewards_are_never_judged_on_single_images(run_config: RunConfigMaker) -> None:
    settings = ("rollout.batch_size=6", "trainer.eval_every=1")
    config = run_config(
        *settings, "~rewards.compressibility", "+eval_rewards.compressibility={plugin: compressibility}"
    )
    for name in ("colorfulness", "compressibility"):
        with pytest.raises(ConfigError, match=rf"reward {name} compares .*images_per_prompt=1 draws one"):
            check_groups(config, groupwise(name))
        check_groups(run_config(*settings, "trainer.eval_every=0"), groupwise(name))
        check_groups(run_config(*settings, "evaluation.images_per_prompt=4"), groupwise(name))
    with pytest.raises(ConfigError, match=r"batch_size=6 would cut groups of evaluation.images_per_prompt=7"):
        check_groups(run_config(*settings, "evaluation.images_per_prompt=7"), groupwise("colorfulness"))


def test_groupwise_rewards_get_whole_groups(
    run_config: RunConfigMaker, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call holds all images of its prompts, though a batch of the rollout would cut them."""
    seen: list[list[str]] = []

    class Groups:
        groupwise = True

        def __call__(self, images: Tensor, prompts: list[str]) -> list[float]:
            seen.append(list(prompts))
            return [0.0] * len(prompts)

    monkeypatch.setattr("marble_cli.rewards.builtin.colorfulness.colorfulness", Groups)
    config = run_config("rewards=[colorfulness]", "evaluation.images_per_prompt=3", "rollout.batch_size=4")
    judged(config, policy)
    assert [len(prompts) for prompts in seen] == [3] * 6
    assert all(len(set(prompts)) == 1 for prompts in seen)


def test_a_run_and_marble_eval_give_the_same_figures(run_config: RunConfigMaker, tmp_path: Path) -> None:
    """In a run that trains small and is judged large; its configuration repeats how."""
    config = run_config(
        f"run.dir={tmp_path}", "trainer.steps=1", "trainer.eval_every=1", "model.resolution=8",
        "evaluation.resolution=16", "evaluation.images_per_prompt=2", "evaluation.steps=2",
        "evaluation.seed=3", "evaluation.prompts=1",
    )  # fmt: skip
    assert train(config, resume="auto") == 0
    (last,) = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["phase"] == "eval" and row["step"]]
    report = evaluate(str(tmp_path), ["base"], [], None)
    assert report.settings == resolve_evaluation(config)
    for result in report.alone:
        assert result.mean == last[f"reward/{result.name}/mean"]
    assert report.diversity is not None
    assert report.diversity.mean == pytest.approx(last["eval/diversity"])
    assert report.comparisons[0].joint is not None
    assert report.comparisons[0].joint.improvement == last["eval/joint_improvement"]
    assert (tmp_path / "config.yaml").read_text() == dump(config)
