"""Say in sentences what a run's numbers show of its balance, and no more than they show."""

from scipy.stats import t

from marble_cli.explain.analysis import Cosines, Explanation, Pair
from marble_cli.wording import count, listed, percent

CHANCE = 0.05  # of reporting a conflict between any two rewards without one
STALE = 0.9  # cosine of the cached with the fresh direction
MOSTLY = 0.5  # share of the refreshes
ENOUGH = 5  # refreshes before shares are reported
FEW = 10.0  # effective samples of a reward in a step
LONG = 3.0  # times the next longest gradient


def diagnose(found: Explanation) -> tuple[str, ...]:
    """Return the sentences that apply, the most important first."""
    checks = (pushed_down, guarded, conflicts, stale_cache, least_shares, thin_signal, long_gradient, fallen)
    return tuple(sentence for check in checks if (sentence := check(found)))


def pushed_down(found: Explanation) -> str:
    """Say how many of the measured steps went against some reward's gradient."""
    measured = found.pushed_down
    if measured is None:
        return (
            "Whether a step pushed some reward down is not known: "
            "no step measured the cosines of its direction."
        )
    unmeasured = found.steps - measured.count
    unknown = f"; {count(unmeasured, 'step')} did not measure it" if unmeasured else ""
    within = f"{count(measured.count, 'step')} that measured it"
    _, lowest = min((r.cosine.lowest, r.name) for r in found.rewards if r.cosine)
    extreme = f"lowest cosine {measured.lowest:+.2f}, {lowest}"
    if measured.negative == 0:
        return f"No reward was pushed down in the {within} ({extreme}){unknown}."
    share, name = max((r.cosine.negative, r.name) for r in found.rewards if r.cosine)
    return (
        f"Some reward was pushed down in {percent(measured.negative)} of the {within} (most often {name}, "
        f"{percent(share)}; {extreme}){unknown}."
    )


def guarded(found: Explanation) -> str | None:
    """Say how often each guard acted, how much it added then, and whether one was violated."""
    guards = [(r.name, r.guard) for r in found.rewards if r.guard]
    if not guards:
        return None
    acted = [
        f"{name} in {percent(guard.acted)} of {count(guard.before.count, 'refresh')}"
        f"{'' if guard.multiplier is None else f' (median multiplier {guard.multiplier:.2g})'}"
        for name, guard in guards
    ]
    violated = [f"{name} by up to {guard.violation:.2g}" for name, guard in guards if guard.violation]
    end = (
        f"; not all could be kept: {listed(violated)} of the direction's length"
        if violated
        else ", and none was violated"
    )
    return f"Guards bent the direction: {listed(acted)}{end}."


def conflicts(found: Explanation) -> str | None:
    """Name the pairs whose gradients conflict beyond chance, at most three, or the closest pair."""
    if not found.pairs:
        return None
    by_mean = sorted(found.pairs, key=lambda pair: pair.cosine.mean)
    opposed = [pair for pair in by_mean if _opposed(pair.cosine, len(found.pairs))]
    if not opposed:
        least = by_mean[0]
        if least.cosine.count == 1:
            return (
                "One refresh does not tell which rewards are opposed; the lowest cosine is that of "
                f"{_names(least)}, {least.cosine.mean:+.2f}."
            )
        return (
            f"No two rewards are opposed beyond chance; the lowest mean cosine is that of {_names(least)}, "
            f"{_mean(least.cosine)} over {count(least.cosine.count, 'refresh')}."
        )
    most = opposed[0]
    others = [
        f"{_names(pair)} ({percent(pair.cosine.negative)}, mean {_mean(pair.cosine)})" for pair in opposed[1:]
    ]
    return (
        f"{_names(most)} conflict: the cosine of their gradients is below 0 in "
        f"{percent(most.cosine.negative)} of {count(most.cosine.count, 'refresh')} "
        f"(mean {_mean(most.cosine)})"
        f"{'; so do ' + '; '.join(others[:2]) if others else ''}"
        f"{f'; and {len(others) - 2} more' if len(others) > 2 else ''}."
    )


def _opposed(cosine: Cosines, pairs: int) -> bool:
    """Test whether a mean cosine is negative: Student's t, with Bonferroni's correction for `pairs` tests."""
    if not cosine.error:
        return cosine.error is not None and cosine.mean < 0
    return bool(pairs * t.cdf(cosine.mean / cosine.error, cosine.count - 1) < CHANCE)


def stale_cache(found: Explanation) -> str | None:
    """Say if the cached weights lost the fresh direction, and if following it faster would help."""
    measured = found.staleness
    if measured is None or measured.mean >= STALE or found.refreshes == found.steps:
        return None  # with a refresh at every step, the cache is never used
    text = (
        f"The cache goes stale: mean cosine {measured.mean:.2f} between the cached and the fresh direction "
        f"over {count(measured.count, 'refresh')}; a smaller balance.refresh_every or balance.ema would "
        "follow faster"
    )
    if found.scatter is None:
        return f"{text}."
    # Of n independent values the ratio has mean 1 and a standard deviation of about 1 / sqrt(n).
    if found.scatter > 1 - 2 / measured.count**0.5:
        return (
            f"{text}, but the fresh shares show no drift beyond their scatter, so that it may follow noise; "
            "more images per step (rollout.groups) would steady them."
        )
    return f"{text}, and the fresh shares do drift."


def least_shares(found: Explanation) -> str | None:
    """Name the rewards that the QP gave one and the same lowest share most of the time."""
    if found.largest_gap is None or found.refreshes < ENOUGH:
        return None
    # One or two rewards always get equal shares. Guards have none.
    equal = 1 / max(1, sum(r.guard is None for r in found.rewards))
    known = [
        f"{r.name} ({r.alpha_lowest:.2f}) in {percent(r.at_lowest)}"
        for r in found.rewards
        if r.at_lowest is not None
        and r.alpha_lowest is not None
        and r.at_lowest >= MOSTLY
        and r.alpha_lowest < 0.99 * equal
    ]
    return f"At the least share stayed {listed(known)} of the refreshes." if known else None


def thin_signal(found: Explanation) -> str | None:
    """Name the reward with the fewest effective samples, if they are few."""
    known = [(r.effective_samples, r) for r in found.rewards if r.effective_samples is not None]
    if not known:
        return None
    samples, reward = min(known, key=lambda item: item[0])
    if samples >= FEW:
        return None
    among = "" if reward.applicable is None else f" of {reward.applicable:.0f} images that it applies to"
    if samples == 0:
        return (
            f"{reward.name} gave no signal in half of the steps or more: its scores were equal within each "
            "prompt's group."
        )
    return f"{reward.name} rests on few images: a median of {samples:.1f} effective samples per step{among}."


def long_gradient(found: Explanation) -> str | None:
    """Name the reward whose gradient is by far the longest, if there is one."""
    known = sorted(
        ((r.grad_norm, r.name) for r in found.rewards if r.grad_norm is not None and r.grad_norm > 0),
        reverse=True,
    )
    if len(known) < 2 or known[0][0] < LONG * known[1][0]:
        return None
    (longest, name), (following, other) = known[:2]
    return (
        f"{name} has by far the longest gradient: median norm {longest:.3g}, {longest / following:.1f} times "
        f"that of {other}, the next."
    )


def fallen(found: Explanation) -> str | None:
    """Name the rewards whose held-out mean is lower at the end than at the start."""
    names = [r.name for r in found.rewards if r.start is not None and r.end is not None and r.end < r.start]
    if not names:
        return None
    return (
        f"On held-out prompts {listed(names)} ended below the start; marble eval RUN --against base tells "
        "whether that is more than chance."
    )


def _names(pair: Pair) -> str:
    return f"{pair.first} and {pair.second}"


def _mean(cosine: Cosines) -> str:
    return f"{cosine.mean:+.2f}" + ("" if cosine.error is None else f" ± {cosine.error:.2f}")
