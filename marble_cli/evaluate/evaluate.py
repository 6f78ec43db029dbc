"""`marble eval`: score a policy, alone or against others on the same prompts and the same initial noise."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from marble_cli.config.aspects import by_aspect, reward_keys
from marble_cli.config.evaluation import resolve_evaluation
from marble_cli.config.schema import RunConfig
from marble_cli.data.condition_checks import check_conditions
from marble_cli.data.prompts import Prompt, held_out, load_prompts
from marble_cli.evaluate.compare import Comparison, compare, compare_diversity, compare_jointly
from marble_cli.evaluate.groups import check_evaluated_groups
from marble_cli.evaluate.report import EvalReport
from marble_cli.evaluate.score import Evaluation, make_evaluator
from marble_cli.evaluate.target import Models, resolve_target
from marble_cli.files import check_writable, write_whole, writing
from marble_cli.metrics.figures import TO_EDIT, image_grid, try_to_draw
from marble_cli.policy.load import pick_device
from marble_cli.policy.source import count_pictures
from marble_cli.rewards.aspects import require_choice
from marble_cli.rewards.scorer import open_scorer
from marble_cli.rollout.sizes import check_sizes


def held_out_prompts(config: RunConfig) -> list[Prompt]:
    """Read the prompts that a run is evaluated on.

    Raises:
        DataError: a file is missing, empty or has bad rows.
    """
    return held_out(load_prompts(config.data, "test"), resolve_evaluation(config).prompts)


def evaluate(
    target: str,
    against: Sequence[str],
    overrides: Sequence[str],
    output: Path | None,
    present: Callable[[EvalReport], None] = lambda _: None,
) -> EvalReport:
    """Evaluate `target`, against each other policy, and write report and images to `output` if given.

    `present` is called with the report before files are written, so that a full disk loses no scores.

    Raises:
        RequestError: a target, override or reward is wrong.
        RewardError: a reward failed on too many images.
    """
    models = Models(overrides, [resolve_target(spec) for spec in (target, *against)])
    config, settings = models.config, resolve_evaluation(models.config)
    if output is not None:
        check_writable(output, "--output ")
        output = output.absolute()
    prompts = held_out_prompts(config)
    check_conditions(prompts, config.model.path, *count_pictures(config.model, fetch=True))
    check_sizes(prompts, config.model, fetch=True)
    device = str(pick_device(config.model.device))
    both = {**config.rewards, **config.eval_rewards}
    with open_scorer(both, device, keys=reward_keys(config)) as scorer:
        for worker in scorer.workers:
            require_choice(worker.key, worker.settings, worker.reward.declaration)
        groupwise = [worker.name for worker in scorer.workers if worker.reward.declaration.groupwise]
        check_evaluated_groups(settings, groupwise)
        evaluations = [
            make_evaluator(config, models.hold(each), scorer, prompts).score(each.adapter)
            for each in models.targets
        ]
    labels, trained = [each.label for each in models.targets], list(by_aspect(config.rewards))
    one, *others = evaluations
    comparisons = [
        Comparison(
            label, compare(one, other), compare_jointly(one, other, trained), compare_diversity(one, other)
        )
        for label, other in zip(labels[1:], others, strict=True)
    ]
    alone, diversity = compare(one, None), compare_diversity(one, None)
    report = EvalReport(labels[0], len(prompts), settings, alone, diversity, comparisons)
    present(report)
    if output is not None:
        _write(report, output, labels, evaluations)
    return report


def _write(
    report: EvalReport, output: Path, labels: Sequence[str], evaluations: Sequence[Evaluation]
) -> None:
    """Write report.json, and images.png: pictures to edit, if any, the other policies, and the target."""
    other = "Choose another --output."
    with writing(output, other):
        output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "report.json", json.dumps(report.to_json(), indent=1) + "\n", other)
    images = [each.images for each in evaluations]
    rows = [*zip(labels[1:], images[1:], strict=True), (labels[0], images[0])]
    if conditions := evaluations[0].conditions:
        rows.insert(0, (TO_EDIT, conditions))
    file, captions = output / "images.png", evaluations[0].captions
    try_to_draw(file, "The report is written.", lambda: image_grid(rows, captions, file))
