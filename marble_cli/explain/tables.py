"""Show a run's balance in the terminal, in tables that fit 80 columns and need no colour."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from marble_cli.config.enums import BalanceMode, RefreshWhen
from marble_cli.config.schema import BalanceConfig
from marble_cli.explain.analysis import Cosines, Explanation
from marble_cli.wording import count, listed, percent

MATRIX = 8  # the most rewards whose matrix fits 80 columns


def page(
    found: Explanation, label: str, balance: BalanceConfig | None, said: Sequence[str]
) -> Iterator[RenderableType]:
    """Yield all parts of the page.

    Args:
        found: the numbers.
        label: the run's name.
        balance: its settings; None if its config.yaml has none.
        said: the diagnosis.
    """
    yield header(found, label, balance)
    yield directions(found)
    if (acted := guards(found)).row_count:
        yield acted
    yield signals(found)
    if found.pairs:
        yield matrix(found) if len(found.rewards) <= MATRIX else most_opposed(found)
    if (overall := conflict(found)).row_count:
        yield overall
    if gone := missing(found):
        yield Text(f"Not recorded by this run: {listed(gone)}.")
    sentences = Table(
        title="Diagnosis",
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        pad_edge=False,
    )
    for sentence in said:
        sentences.add_row("-", sentence)
    yield sentences


def header(found: Explanation, label: str, balance: BalanceConfig | None) -> Table:
    """Tabulate what was run, and how the QP was solved."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("run", Text(label, style="bold"))
    table.add_row("balance", "unknown" if balance is None else _settings(balance))
    table.add_row("steps", f"{found.steps}, of which {count(found.refreshes, 'refresh')}")
    if found.largest_gap is not None:
        parts = [] if balance is None else [balance.solver]
        parts += [] if found.fallbacks is None else [count(found.fallbacks, "fallback")]
        parts.append(f"largest gap {found.largest_gap:.1e}")
        parts += [] if found.solve_seconds is None else [f"median {1000 * found.solve_seconds:.2g} ms"]
        table.add_row("solver", ", ".join(parts))
    return table


def _settings(balance: BalanceConfig) -> str:
    text = f"{balance.name}, mode {balance.mode.value}"
    if balance.mode is BalanceMode.amortized:
        stale = balance.refresh_when is RefreshWhen.stale
        refreshes = "refresh_when stale" if stale else f"refresh_every {balance.refresh_every}"
        text += f", {refreshes}, ema {balance.ema:g}"
    text += f", floor {balance.floor:g}" if balance.floor else ""
    if balance.refresh_fraction < 1.0:
        text += f", cosines of the {balance.refresh_fraction:g} of a step that the balance saw"
    return text


def directions(found: Explanation) -> Table:
    """Tabulate shares, weights and gradients per reward, and the cosines of the applied direction."""
    table = _table(
        "Balance", "reward", "alpha", "cached", "weight", "|g|", "cosine", "lowest", "below 0", "steps"
    )
    for r in found.rewards:
        cosine = ("-", "-", "-", "-") if r.cosine is None else (*_cosine(r.cosine), str(r.cosine.count))
        shares = (_number(r.alpha, ".2f"), _number(r.alpha_cached, ".2f"))
        table.add_row(r.name, *shares, _number(r.weight, "#.2g"), _number(r.grad_norm, "#.2g"), *cosine)
    return table


def _cosine(cosine: Cosines) -> tuple[Text, Text, Text]:
    below = Text(percent(cosine.negative), style="red" if cosine.negative else "")
    return _signed(cosine.mean, "+.2f"), _signed(cosine.lowest, "+.2f"), below


def guards(found: Explanation) -> Table:
    """Tabulate how often each guard acted and how strongly, and the direction's cosines before it did."""
    table = _table("Guards", "reward", "acted", "of", "multiplier", "before", "below 0", "violation")
    for r in found.rewards:
        if (guard := r.guard) is not None:
            acted = (percent(guard.acted), str(guard.before.count), _number(guard.multiplier, "#.2g"))
            before, _, below = _cosine(guard.before)
            table.add_row(r.name, *acted, before, below, f"{guard.violation:.2g}")
    return table


def signals(found: Explanation) -> Table:
    """Tabulate on how many images each reward rests, and how its held-out mean changed."""
    table = _table("Signal and outcome", "reward", "effective", "applicable", "start", "end", "change")
    for r in found.rewards:
        change = None if r.start is None or r.end is None else r.end - r.start
        images = (_number(r.effective_samples, ".1f"), _number(r.applicable, ".0f"))
        held_out = (_number(r.start, "#.4g"), _number(r.end, "#.4g"), _signed(change, "+#.3g"))
        table.add_row(r.name, *images, *held_out)
    return table


def matrix(found: Explanation) -> Table:
    """Tabulate mean pairwise cosines below the diagonal; columns are numbered like the rows."""
    names = [reward.name for reward in found.rewards]
    means = {(pair.second, pair.first): pair.cosine.mean for pair in found.pairs}
    table = _table("Mean cosine between gradients", "reward", *(str(n) for n in range(1, len(names))))
    for row, name in enumerate(names):
        table.add_row(
            f"{row + 1} {name}", *(_signed(means.get((name, other)), "+.2f") for other in names[:row])
        )
    return table


def most_opposed(found: Explanation) -> Table:
    """Tabulate the pairs with the lowest mean cosines, for runs whose matrix would be too wide."""
    table = _table("Most opposed gradients", "rewards", "cosine", "lowest", "below 0")
    for pair in sorted(found.pairs, key=lambda pair: pair.cosine.mean)[:MATRIX]:
        table.add_row(f"{pair.first}, {pair.second}", *_cosine(pair.cosine))
    return table


def conflict(found: Explanation) -> Table:
    """Tabulate the figures of the run as a whole."""
    table = Table(box=None, show_header=False, pad_edge=False)
    if (down := found.pushed_down) is not None:
        table.add_row(
            "some reward pushed down",
            f"{percent(down.negative)} of {count(down.count, 'measured step')}, "
            f"lowest cosine {down.lowest:+.2f}",
        )
    if (down := found.cached_pushed_down) is not None and found.refreshes < found.steps:
        table.add_row(
            "cached weights would have",
            f"{percent(down.negative)} of {count(down.count, 'refresh')}, lowest cosine {down.lowest:+.2f}",
        )
    if found.conflict_share is not None:
        table.add_row("pairs in conflict", f"{percent(found.conflict_share)} at a refresh, on average")
    if (stale := found.staleness) is not None:
        table.add_row(
            "cached with fresh direction",
            f"cosine {stale.mean:.2f} on average, "
            f"lowest {stale.lowest:.2f} ({count(stale.count, 'refresh')})",
        )
    return table


def missing(found: Explanation) -> list[str]:
    """List the figures that the tables leave blank for every reward."""
    rewards = found.rewards
    evaluated = any(r.start is not None for r in rewards)
    parts = {
        "shares (alpha)": all(r.alpha is None for r in rewards),
        "gradient norms": all(r.grad_norm is None for r in rewards),
        "cosines of the direction": found.pushed_down is None,
        "pairwise cosines": not found.pairs and len(rewards) > 1,
        "staleness": found.staleness is None,
        "effective samples": all(r.effective_samples is None for r in rewards),
        "held-out means": all(r.start is None for r in rewards),
        "a second held-out evaluation": evaluated and all(r.end is None for r in rewards),
    }
    return [name for name, gone in parts.items() if gone]


def _table(title: str, name: str, *figures: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column(name, overflow="fold")
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form).rstrip(".")


def _signed(value: float | None, form: str) -> Text:
    return Text(_number(value, form), style="red" if value is not None and value < 0 else "")
