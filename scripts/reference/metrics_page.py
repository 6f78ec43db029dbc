"""The page docs/reference/metrics.md: every key of metrics.jsonl, what it means and when a row has it."""

from dataclasses import dataclass

from scripts.reference.markdown import MADE, cell, code, table


@dataclass(frozen=True)
class Metric:
    """One key of metrics.jsonl.

    `key` has `<k>` and `<l>` for names of rewards. `phases` are the phases whose rows have it.
    """

    key: str
    meaning: str
    when: str
    phases: tuple[str, ...] = ("train",)


EVERY, BOTH = "every step", "every row"
FINITE = "steps whose velocities are finite"
SOLVED = (
    "every step that solves a balance: refreshes, and all steps with `balance.mode=full` or `output_space`"
)
MEASURED = "refreshes; with `output_space` the scheduled ones alone"
COMPARED = "evaluations in which a trained reward or a guard scored an image that the first one scored too"
GUARDED = "every step that solves a balance in which the guard is active"
SECTIONS: dict[str, tuple[Metric, ...]] = {
    "Rows": (
        Metric(
            "step",
            "The optimizer step, from 1; 0 for the evaluation before the first step.",
            BOTH,
            ("train", "eval"),
        ),
        Metric("phase", "`train` for an optimizer step, `eval` for an evaluation.", BOTH, ("train", "eval")),
    ),
    "Rewards": (
        Metric("reward/<k>/applicable", "Images that the reward applies to.", BOTH, ("train", "eval")),
        Metric("reward/<k>/failed", "Images whose scoring failed.", BOTH, ("train", "eval")),
        Metric(
            "reward/<k>/mean",
            "Mean score over the applicable images; held-out images in an evaluation.",
            "rows in which the reward applies to an image",
            ("train", "eval"),
        ),
        Metric(
            "reward/<k>/std",
            "Standard deviation of these scores (divided by n).",
            "rows in which the reward applies to an image",
            ("train", "eval"),
        ),
        Metric(
            "reward/<k>/change",
            "Mean change of the held-out images' scores since the first evaluation, image by image.",
            "evaluations with an image that the reward scored in the first one too",
            ("eval",),
        ),
        Metric(
            "reward/<k>/change_low",
            "Lower end of the change's 95 % bootstrap interval. Of fewer than six prompts it is too narrow.",
            "as the change",
            ("eval",),
        ),
        Metric(
            "reward/<k>/change_high",
            "Upper end of the change's 95 % bootstrap interval. Of fewer than six prompts it is too narrow.",
            "as the change",
            ("eval",),
        ),
        Metric(
            "reward/<k>/change_p",
            "p-value of no change by a two-sided sign-flip test over prompts; each reward for itself.",
            "as the change",
            ("eval",),
        ),
        Metric(
            "reward/<k>/gain",
            "The change in standard deviations of the scores in the first evaluation, or in both if all its "
            "scores there are equal.",
            "as the change",
            ("eval",),
        ),
        Metric(
            "advantage/<k>/std",
            "Standard deviation of the reward's advantages over the applicable images.",
            "steps in which the reward applies to an image",
        ),
        Metric(
            "advantage/<k>/effective_samples",
            "`(sum |A|)^2 / sum A^2` of the advantages: how many images carry the reward's signal.",
            "steps in which the reward applies to an image",
        ),
        Metric(
            "reward/<k>/flat_groups",
            "Share without signal of the prompt groups that the reward applies to: all its scores there are "
            "equal, or there is only one.",
            "steps in which the reward applies to an image",
        ),
        Metric(
            "signal/dead_groups",
            "Share of the prompt groups in which no reward, guards included, has signal; with "
            "`rollout.dead_groups=redraw` after the last attempt.",
            EVERY,
        ),
        Metric(
            "signal/redrawn_groups",
            "Prompt groups that were drawn in the place of dead ones, in all attempts.",
            "steps with `rollout.dead_groups=redraw`",
        ),
        Metric("signal/trained_images", "Images that are trained on, on all processes.", EVERY),
        Metric(
            "eval/start",
            "1: later evaluations are compared with this one. A resumed run that draws other held-out images "
            "has another.",
            "first evaluations",
            ("eval",),
        ),
        Metric(
            "eval/composite",
            "Mean of `reward/<k>/gain` over the trained rewards. The loss of a guard is subtracted, a gain "
            "not counted. `trainer.best` selects by it.",
            COMPARED,
            ("eval",),
        ),
        Metric(
            "eval/diversity",
            "Mean distance of the images of a prompt: the root mean square difference of two latents, over "
            "all pairs.",
            "evaluations with `evaluation.images_per_prompt` above 1",
            ("eval",),
        ),
        Metric(
            "eval/joint_improvement",
            "Share of the held-out images that are at least as good as at the first evaluation in every "
            "applicable reward that is trained or a guard, and better in one. Scores that differ by at most "
            "1e-4 of the larger count as equal.",
            COMPARED,
            ("eval",),
        ),
        Metric(
            "eval/joint_decline",
            "Share of the held-out images that are worse than at the first evaluation in every applicable "
            "reward that is trained or a guard, beyond the same rounding.",
            COMPARED,
            ("eval",),
        ),
    ),
    "Balance": (
        Metric(
            "balance/refresh",
            "1 if the step solves a balance or computes each reward's gradient, 0 if it is amortised.",
            EVERY,
        ),
        Metric(
            "balance/alpha/<k>",
            "The reward's share. At an amortised step, the cached share. Guards have none.",
            "steps with a balance in which the reward is active",
        ),
        Metric(
            "balance/weight/<k>",
            "Factor of the reward's raw gradient in the direction. With `balance.amortize=advantage` the "
            "amortised steps mix advantages by `balance/alpha/<k>` and do not use it.",
            "steps with a balance in which the reward is active",
        ),
        Metric(
            "balance/alpha_cached/<k>",
            "The smoothed share for the amortised steps to come.",
            "refreshes with a balance",
        ),
        Metric(
            "balance/gap",
            "Optimality gap of the accepted solution; at most 1e-10.",
            SOLVED + ", if the balance solves a QP",
        ),
        Metric("balance/solve_seconds", "Wall time of the solution, in seconds.", SOLVED),
        Metric("balance/fallbacks", "Solvers that were refused before the accepted solution.", SOLVED),
        Metric(
            "balance/failed",
            "1 if no solution was good enough and the step takes the cached weights.",
            "refreshes with a balance, except with `output_space`",
        ),
    ),
    "Guards": (
        Metric(
            "balance/guard/<k>/acted",
            "1 if the guard bent the direction of the trained rewards, else 0.",
            GUARDED,
        ),
        Metric(
            "balance/guard/<k>/multiplier",
            "Length of what the guard added to that direction, per length of the direction.",
            GUARDED,
        ),
        Metric(
            "balance/guard/<k>/violation",
            "By how much the applied direction misses the guard's margin, per length of the trained rewards' "
            "direction; above 0 only if the guards want opposite things.",
            GUARDED,
        ),
        Metric(
            "balance/guard/<k>/cosine_before",
            "Cosine of the trained rewards' direction with the guard's gradient. `balance/cosine/<k>` has "
            "that of the applied one; with `output_space` it is of the weights, and the guard's figures are "
            "of the velocities.",
            GUARDED,
        ),
    ),
    "Gradients and conflicts": (
        Metric("balance/grad_norm/<k>", "Norm of the reward's gradient.", MEASURED),
        Metric(
            "balance/cosine/<k>",
            "Cosine of the weighted sum of the rewards' gradients, which the step follows beside the shared "
            "term and the KL term, with the reward's gradient. Below 0, that sum pushes the reward down.",
            MEASURED,
        ),
        Metric("balance/pairwise_cosine/<k>/<l>", "Cosine between the gradients of two rewards.", MEASURED),
        Metric(
            "balance/conflict_share",
            "Share of the pairs of rewards with a negative cosine.",
            MEASURED + ", with two rewards or more",
        ),
        Metric(
            "balance/cached_cosine/<k>",
            "Cosine that the direction of the weights cached before has with the reward's gradient.",
            "refreshes after the first, with `balance.amortize=direction`",
        ),
        Metric(
            "balance/staleness",
            "Squared distance of the cached shares from those of half of the refresh's images.",
            "refreshes with `balance.refresh_when=stale`",
        ),
        Metric(
            "balance/staleness_noise",
            "Squared distance between the shares of both halves of the refresh's images.",
            "refreshes with `balance.refresh_when=stale`",
        ),
        Metric(
            "balance/refresh_interval",
            "Steps to the next refresh.",
            "refreshes with `balance.refresh_when=stale`",
        ),
        Metric(
            "balance/staleness_cosine",
            "Cosine between the direction of the weights cached before and the new one; 1 if nothing "
            "went stale.",
            "refreshes after the first, with `balance.amortize=direction`",
        ),
    ),
    "Loss and update": (
        Metric("loss/policy", "The DiffusionNFT loss along the applied weights.", FINITE),
        Metric(
            "loss/kl",
            "The KL term, `loss/kl_coef * mean (v_theta - v_ref)^2`; 0 if the coefficient is 0. With "
            "`algorithm.kl_every` above 1 an unbiased estimate of it, from the micro-batches drawn.",
            FINITE,
        ),
        Metric(
            "policy/deviation",
            "Mean `|v_theta - v_old|` over the samples trained on, relative to the mean `|v_old|`. Exactly 0 "
            "while the behaviour policy equals the trained one: at the first step, and after an update with "
            "`behaviour/eta` 0.",
            FINITE,
        ),
        Metric(
            "loss/kl_coef",
            "KL coefficient of the step: `algorithm.kl_coef`, or what rollbacks have made of it, times what "
            "`algorithm.kl_schedule` leaves of it.",
            EVERY,
        ),
        Metric(
            "loss/kl_share",
            "Share of the images trained on that the KL term acts on; the others do not enter `loss/kl`.",
            "steps with `algorithm.kl_gate=watched`",
        ),
        Metric("grad_norm", "Norm of the step's gradient before clipping.", "steps whose gradient is finite"),
        Metric(
            "behaviour/eta",
            "Share of itself that the behaviour policy keeps.",
            "steps whose gradient is finite",
        ),
        Metric("optimizer/learning_rate", "Learning rate of the step.", EVERY),
        Metric(
            "alarm/rollbacks",
            "How often the run went back to its best checkpoint (`trainer.on_hacking=rollback`).",
            "steps after a rollback",
        ),
        Metric("skipped", "1: the gradient was not finite, and the weights stay as they are.", "such steps"),
    ),
    "Time": (
        Metric("time/rollout", "Seconds for drawing images. Scoring runs at the same time.", EVERY),
        Metric("time/reward", "Seconds of waiting for scores after the rollout.", EVERY),
        Metric("time/train", "Seconds for gradients, balance and update.", EVERY),
        Metric("time/step", "Seconds for the whole step.", EVERY),
        Metric("throughput/images_per_second", "Images of the step, on all processes, per second.", EVERY),
    ),
}
METRICS = tuple(metric for section in SECTIONS.values() for metric in section)

INTRODUCTION = """# Metrics

`<run.dir>/metrics.jsonl` has one JSON object per line: one per optimizer step and one per evaluation.
`<k>` is the name of a reward, or of an aspect such as `judge.style`. A figure that does not exist is a
missing key; no NaN is written. W&B gets the same keys,
with `eval/` in front of those of evaluations. [marble explain](explain.md) reads the
file.

With `balance.refresh_fraction` below 1, gradients and cosines are those of the micro-batches that the
balance saw. `balance=weighted_sum` and `advantage_sum` mix rewards before there is a gradient, so they
have no shares, weights and gap.
"""


def render() -> str:
    """Return the page."""
    parts = [MADE.format(source="scripts/reference/metrics_page.py"), INTRODUCTION]
    for title, metrics in SECTIONS.items():
        rows = (
            (code(metric.key), cell(metric.meaning), cell(metric.when), ", ".join(metric.phases))
            for metric in metrics
        )
        parts.append(f"\n## {title}\n\n" + table(("key", "meaning", "present in", "phase"), rows))
    return "".join(parts)
