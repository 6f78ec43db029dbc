"""Write the study's report from the committed scores of its cells.

    python -m scripts.study.report [--results docs/results/study/cells] [--output docs/results/study]

Writes results.md, results.json and figures. Cells without scores are left out, and the report counts them.
"""

import argparse
import json
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from string import Template

from scripts.study.__main__ import RESULTS
from scripts.study.cells import (
    BUDGETS,
    CHEAPER,
    GUARDED,
    MARBLE,
    MERGES,
    SPECIALISTS,
    TUNED_AS,
    UNMATCHED,
    judged_cells,
    methods,
)
from scripts.study.choose import Curve, best_rate, next_cells, rate_at_drift, tuning_curve
from scripts.study.figures import draw_gains, draw_outcomes, draw_rates
from scripts.study.scores import Folders
from scripts.study.statistics import Summary, base_unit, summarise
from scripts.study.tables import gain_table, outcome_table, tuning_table

HEAD = """# Results of the study

Written by `python -m scripts.study.report`.

- *Gains* are over the base model on the same prompts and noise, in standard deviations of the base model,
  with half of a 95 % bootstrap interval over seeds and prompts. A gain is bold if its interval excludes zero.
- *Mean gain* is that of the five rewards, *worst reward* the least of the five.
- *All five up*: seeds in which the mean of every reward rose.
- *Improved jointly*: images that are at least as good in every applicable reward and better in one. *Declined
  jointly*: images that are worse in every one.
- *Drift*: `loss/kl`, the squared distance of trained and base velocities times `algorithm.kl_coef`, over the
  last ten steps.
- *Pushed down*: share of the steps with a measured gradient of every reward in which the applied direction
  had a negative cosine with one of them. *Between refreshes*: share of the refreshes before which the cached
  weights of the amortised steps would have.
- *images/s*: of training. The runs shared the machine with others, so this compares roughly;
  [`make bench`](../bench.md) compares exactly.
"""
BUDGET_PAGE = Template("""
## Budget $budget: $images images

### Learning rates

Mean gain, worst reward and joint improvement of the tuning cells, one run each, on prompts that the judged
cells are not judged on. A rate is a method's best once both of its neighbours are lower. A specialist's
figures begin with the gain of its own reward, which chooses its rate; the picture leaves specialists out.

$tuning

![Mean gain, worst reward and joint improvement over the learning rate](rates-$budget.png)
""")
MERGED_PAGE = Template("""
### Weights of merges

The same figures over the weight of each of the five specialists.

$tuning
""")
JUDGED_PAGE = Template("""
### Every method at its own best learning rate

$outcomes

$gains

![Worst reward and joint improvement against the mean gain](outcomes-$budget.png)

![Gain of every method in every reward](gains-$budget.png)
""")
GUARDED_PAGE = Template("""
### Guards

`marble_guarded` and `sum_guarded` guard compressibility, `sum_of_four` leaves it out; beside the methods
whose learning rates they take.

$gains
""")
CHEAPER_PAGE = Template("""
### Cheaper steps

`marble_select` trains on the half of the images with the most signal. `pair` trains on ocr and objects alone,
and `pair_drop` leaves out the groups in which neither has signal. For the same FLOP both take more steps.
`marble_kl_every` takes as many steps as `marble_stale`, the frozen model's pass on every fourth micro-batch.

$outcomes

$gains
""")
MATCHED_PAGE = Template("""
### Every method at the drift of `marble`

$outcomes

$gains
""")


@dataclass(frozen=True)
class BudgetResults:
    """Finished cells of one budget.

    Attributes:
        curves: tuning cells by method.
        best: methods at their own best learning rate.
        matched: methods at the drift of `marble`.
    """

    curves: dict[str, Curve]
    best: list[Summary]
    matched: list[Summary]

    @property
    def tuned(self) -> dict[str, Curve]:
        """Tuning cells of the methods that have a learning rate of their own."""
        return {name: curve for name, curve in self.curves.items() if name not in TUNED_AS}


def read_budget(folders: Folders, budget: str) -> BudgetResults:
    """Summarise the finished cells of a budget."""
    found = {name: tuning_curve(folders, budget, name) for name in methods(budget)}
    curves = {name: curve for name, curve in found.items() if curve}
    tuned = {name: curve for name, curve in curves.items() if not next_cells(curve, budget, name)}
    rates = {name: best_rate(curve) for name, curve in tuned.items()}
    matched: dict[str, float] = {}
    if MARBLE in tuned:
        drift = tuned[MARBLE][rates[MARBLE]].drift
        compared = {name: curve for name, curve in tuned.items() if name not in UNMATCHED}
        matched = {name: rate_at_drift(curve, drift) for name, curve in compared.items()}
    unit = base_unit(folders)

    def judged(chosen: dict[str, float]) -> list[Summary]:
        rows = (summarise(folders, judged_cells(budget, *pair), unit) for pair in chosen.items())
        return [row for row in rows if row]

    return BudgetResults(curves, judged(rates), judged(matched))


def write_report(folders: Folders, output: Path) -> None:
    """Summarise the results and write all files of the report to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    page, figures = HEAD, {}
    for budget in BUDGETS:
        results = read_budget(folders, budget)
        if results.curves:
            page += write_budget(results, budget, output)
        figures[budget] = {
            "tuning": [row.as_json() for curve in results.tuned.values() for row in curve.values()],
            "best": [row.as_json() for row in results.best],
            "matched": [row.as_json() for row in results.matched],
        }
    (output / "results.json").write_text(json.dumps(figures, indent=1) + "\n")
    (output / "results.md").write_text(page)
    print(output / "results.md")


def write_budget(results: BudgetResults, budget: str, output: Path) -> str:
    """Draw the figures of a budget and return its part of the page."""
    trained = {name: curve for name, curve in results.tuned.items() if name not in MERGES}
    merged = {name: curve for name, curve in results.curves.items() if name in MERGES}
    balances = {name: curve for name, curve in trained.items() if name not in SPECIALISTS}
    draw_rates(balances, output / f"rates-{budget}.png")
    page = BUDGET_PAGE.substitute(
        budget=budget, images=f"{BUDGETS[budget].images:,}", tuning=tuning_table(trained)
    )
    if merged:
        page += MERGED_PAGE.substitute(tuning=tuning_table(merged))
    if results.best:
        page += write_judged(results.best, budget, output)
    if results.matched:
        page += MATCHED_PAGE.substitute(
            outcomes=outcome_table(results.matched), gains=gain_table(results.matched)
        )
    return page


def write_judged(best: list[Summary], budget: str, output: Path) -> str:
    """Draw the figures of the judged cells and return their part of the page."""
    rows = [row for row in best if row.cell.method not in TUNED_AS]
    # Specialists, and merges of them, fall so far that the others would share a corner.
    trained_on_all = [row for row in rows if row.cell.method not in (*SPECIALISTS, *MERGES)]
    draw_outcomes(trained_on_all, output / f"outcomes-{budget}.png")
    draw_gains(rows, output / f"gains-{budget}.png")
    page = JUDGED_PAGE.substitute(budget=budget, outcomes=outcome_table(rows), gains=gain_table(rows))
    if guarded := beside_their_likes(best, GUARDED):
        page += GUARDED_PAGE.substitute(gains=gain_table(guarded))
    if cheaper := beside_their_likes(best, CHEAPER):
        page += CHEAPER_PAGE.substitute(outcomes=outcome_table(cheaper), gains=gain_table(cheaper))
    return page


def beside_their_likes(best: list[Summary], variants: Collection[str]) -> list[Summary]:
    """Return the rows of some variants after those of the methods whose rates they take; none without any."""
    found = {row.cell.method for row in best}.intersection(variants)
    shown = found | {TUNED_AS[method] for method in found}
    return [row for row in best if row.cell.method in shown]


def main(arguments: list[str]) -> None:
    """Write the report that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.study.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of scores (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=RESULTS.parent, help="folder of the report (%(default)s)"
    )
    options = parser.parse_args(arguments)
    write_report(Folders(Path("unused"), options.results), options.output)


if __name__ == "__main__":
    main(sys.argv[1:])
