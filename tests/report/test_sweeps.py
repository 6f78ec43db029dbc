"""A sweep's folder as a target of the report: its cells as runs, and their front over two rewards."""

import itertools
import random
from pathlib import Path

import altair as alt
import pytest

from marble_cli.config.sweep import Cell
from marble_cli.errors import RequestError
from marble_cli.report import sweeps
from marble_cli.report.page import report
from marble_cli.report.reading import read_runs
from marble_cli.sweep.record import Sweep
from tests.report.browser import NEEDS_CHROMIUM, title_of
from tests.report.conftest import EVIL, evaluation, training, write_run
from tests.report.page import Page

RISES = {"0": (1.0, -0.5), "0.1": (0.5, 0.5), "0.2": (0.4, 0.4), "0.4": (0.0, 0.75)}  # 0.2 is beaten by 0.1


def write_sweep(folder: Path, rises: dict[str, tuple[float, float]] = RISES) -> Sweep:
    """Write a sweep whose two rewards changed by `rises` deviations, with a cell that never began."""
    folder.mkdir()
    for floor, changes in rises.items():
        last = evaluation(2)
        for name, rise in zip(("colorfulness", "compressibility"), changes, strict=True):
            ends = {"change": 2 * rise, "change_low": 2 * rise - 1, "change_high": 2 * rise + 1}
            last |= {f"reward/{name}/{end}": value for end, value in ends.items()}
        write_run(
            folder, f"balance.floor={floor}", [evaluation(0), training(1), last], f"balance.floor={floor}"
        )
    names = [*rises, "0.45"]
    cells = [Cell(f"balance.floor={f}", {"balance.floor": float(f)}, (f"balance.floor={f}",)) for f in names]
    failures = {"balance.floor=0.45": f"it broke {EVIL}"}
    sweep = Sweep(folder, ("balance.floor",), tuple(cells), failures)
    sweep.write()
    return sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "floors")


@pytest.fixture(scope="module")
def sweep_page(sweep: Sweep) -> Page:
    return Page(report([sweep.folder]))


def test_the_front_has_a_point_per_cell_and_a_chart_per_pair(sweep: Sweep) -> None:
    folders, (read,) = sweeps.expand([sweep.folder])
    group = sweeps.fronts(read_runs(folders), [read])
    assert [chart.title for chart in group.charts] == [
        "colorfulness and compressibility",
        "colorfulness and seen",
        "compressibility and seen",
    ]
    rows = group.charts[0].spec["datasets"]["rows"]
    assert [(row["cell"], row["x"], row["y"]) for row in rows] == [
        (f"floor {float(floor)}", *rise) for floor, rise in RISES.items()
    ]
    assert {(row["x"] - row["x_low"], row["y_high"] - row["y"]) for row in rows} == {(0.5, 0.5)}
    assert [row["joined"] for row in rows] == [True, True, False, True]
    assert group.charts[0].summary == "joined: floor 0.4; floor 0.1; floor 0.0"
    assert group.charts[0].values.rows[2] == ["floor 0.2", "+0.4", "−0.1 … +0.9", "+0.4", "−0.1 … +0.9", "no"]


def test_no_point_of_the_front_is_beaten_and_every_other_one_is() -> None:
    draw = random.Random(0)
    points = [(draw.randrange(6), draw.randrange(6)) for _ in range(30)]

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one != other and one[0] >= other[0] and one[1] >= other[1]

    front = {point for point, best in zip(points, sweeps.unbeaten(points), strict=True) if best}
    assert not any(beats(one, other) for one, other in itertools.product(front, front))
    assert all(any(beats(one, point) for one in front) for point in set(points) - front)


def test_the_page_of_a_sweep_names_its_cells_their_values_and_failures(sweep_page: Page) -> None:
    page = sweep_page
    assert page.all("h1")[0].text == "floors"
    assert page.row("balance.floor=0", "1")[2:] == ["25 %", "compressibility -0.50 sd"]
    assert page.row("balance.floor=0.45", "0")[2:] == ["–", "–"]
    assert page.row("balance.floor=0.45", f"it broke {EVIL}")
    assert page.row("balance.floor", "0.0")[1:] == ["0.0", "0.1", "0.2", "0.4"]
    options = [option.text for option in page.all("option")]
    assert "colorfulness and seen" in options
    assert [e.attributes["id"] for e in page.all("select")][:1] == ["pair"]
    assert page.row("floor 0.2", "+0.4"), "the front has its values as a table"
    assert all(len(spec["description"]) > 20 for spec in page.specs)


def test_a_single_run_has_no_front(page: Page) -> None:
    assert 'id="front"' not in page.source
    assert 'id="pair"' not in page.source


def test_a_sweep_beside_a_run_shows_both(sweep: Sweep, run: Path) -> None:
    page = Page(report([sweep.folder, run]))
    assert page.all("h1")[0].text == "floors · first"
    assert len([e for e in page.all("option") if e.text == "first"]) == 1
    rows = page.specs[1]["datasets"]["rows"]
    assert len(rows) == len(RISES), "a run of no sweep is no point of the front"
    for spec in page.specs:  # of every kind
        alt.Root.validate(spec)  # by the schema of Vega-Lite


def test_a_sweep_without_a_begun_cell_is_refused(tmp_path: Path) -> None:
    write_sweep(tmp_path / "s", {})
    with pytest.raises(RequestError, match="none of its 1 cells has begun"):
        report([tmp_path / "s"])


def test_cells_without_two_evaluations_say_so(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s", {"0": (0.0, 0.0)})
    (sweep.folder / "balance.floor=0" / "metrics.jsonl").write_text("")
    assert "It needs two evaluations of a cell" in Page(report([sweep.folder])).words


CHOOSE = """<!doctype html><title>-</title>
<iframe src="report.html" style="width:400px;height:900px"></iframe>
<script>
setTimeout(() => {
  const page = document.querySelector("iframe").contentDocument;
  const shown = () => [...page.querySelectorAll("#fronts > figure")].map((front) =>
    front.hidden ? "-" : String(front.querySelectorAll(".chart svg").length)).join("");
  const pair = page.getElementById("pair"), first = shown();
  pair.selectedIndex = 2;
  pair.dispatchEvent(new Event("change"));
  setTimeout(() => { document.title = `${first} ${shown()} ${page.documentElement.scrollWidth}`; }, 3000);
}, 15000);
</script>
"""


@NEEDS_CHROMIUM
def test_the_chosen_pair_is_drawn(sweep_page: Page, tmp_path: Path) -> None:
    assert title_of(CHOOSE, sweep_page.source, tmp_path, budget=25000) == "1-- --1 400"
