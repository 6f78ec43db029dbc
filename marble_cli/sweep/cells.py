"""Compose a sweep: the configuration of every cell, each with a folder of its own below the sweep's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from marble_cli.checkpoint.resume import describe_differences, differences, find_checkpoint
from marble_cli.checkpoint.step_folders import step_of
from marble_cli.config.compose import compose, load_resolved
from marble_cli.config.overrides import parse
from marble_cli.config.schema import RunConfig
from marble_cli.config.sweep import Cell, digest, split_sweep
from marble_cli.errors import RequestError
from marble_cli.sweep.record import Sweep, is_sweep, read_sweep

HOW = ("launcher", "logging")  # groups that say how cells run, not what they train
LONGEST_KEYS = 100  # characters of the swept keys in the name of a sweep's folder


@dataclass(frozen=True)
class PlannedCell:
    """A cell with its configuration.

    Attributes:
        cell: the swept values.
        config: the configuration, whose `run.dir` is the cell's folder.
    """

    cell: Cell
    config: RunConfig

    @property
    def name(self) -> str:
        return self.cell.name

    def resume(self, asked: str) -> str:
        """Return `--resume` of the cell: a checkpoint that was asked for is where new cells start."""
        own = (Path(self.config.run.dir) / "checkpoints" / "latest").is_file()
        return "auto" if own and asked != "never" else asked

    def finished_steps(self, asked: str = "auto") -> int:
        """Return the step of the cell's own newest checkpoint, 0 without one.

        Raises:
            RequestError: the folder holds another run, or may not be continued.
        """
        resume = self.resume(asked)
        checkpoint = find_checkpoint(Path(self.config.run.dir), self.config, resume)
        return step_of(checkpoint) if checkpoint is not None and resume == "auto" else 0


@dataclass(frozen=True)
class PlannedSweep:
    """The cells of one command, and the record of their sweep, which may have more cells."""

    cells: tuple[PlannedCell, ...]
    sweep: Sweep

    def is_done(self, planned: PlannedCell, resume: str) -> bool:
        """Tell whether a cell has had all its steps and did not fail."""
        steps = planned.config.trainer.steps
        failed = planned.name in self.sweep.failures
        return not failed and 0 < steps <= planned.finished_steps(resume)


def plan_sweep(words: Sequence[str], config_name: str | None) -> PlannedSweep:
    """Compose every cell of a sweep; nothing is written.

    Raises:
        RequestError: an override is wrong, which is said with the cell if it concerns one, or the folder
            holds another sweep, or cells with other settings beside the swept ones.
    """
    fixed, cells = split_sweep(words)
    keys = tuple(cells[0].values)
    first = _compose(cells[0], fixed, config_name)
    folder, title = _folder(fixed, keys, config_name, first)

    def planned(cell: Cell) -> PlannedCell:
        own = {"run.name": f"{title}/{cell.name}", "run.dir": str(folder / cell.name)}
        last = [f"{key}={QuotedString(text, Quote.single).with_quotes()}" for key, text in own.items()]
        return PlannedCell(cell, _compose(cell, [*fixed, *last], config_name))

    listed = tuple(map(planned, cells))
    sweep = _recorded(folder, keys, cells)
    if others := [cell for cell in sweep.cells if cell not in cells and _settings(folder, cell).is_file()]:
        _check_alike(folder, planned(others[0]))  # which was compared with the others when it was added
    return PlannedSweep(listed, sweep)


@contextmanager
def naming(cell: str) -> Iterator[None]:
    """Name the cell in the message of a request error that is raised inside the block."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"cell {cell}: {error}") from error


def _compose(cell: Cell, words: Sequence[str], config_name: str | None) -> RunConfig:
    with naming(cell.name):
        return compose([*words, *cell.overrides], config_name)


def _folder(
    fixed: Sequence[str], keys: Sequence[str], config_name: str | None, first: RunConfig
) -> tuple[Path, str]:
    """Return the sweep's folder and the beginning of its runs' names.

    Without `run.dir` and `run.name`, the same command has the same folder, whatever the swept values are and
    wherever it runs.
    """
    given = [override.key_or_group for override in parse(fixed)]
    what = (word for word, key in zip(fixed, given, strict=True) if key.partition(".")[0] not in HOW)
    same = digest([*sorted(what), config_name or ""])
    title = first.run.name if "run.name" in given else f"sweep-{','.join(keys)[:LONGEST_KEYS]}-{same}"
    folder = Path(first.run.dir) if "run.dir" in given else Path("runs", title).absolute()
    return folder, title if "run.name" in given else folder.name


def _settings(folder: Path, cell: Cell) -> Path:
    return folder / cell.name / "config.yaml"


def _check_alike(folder: Path, cell: PlannedCell) -> None:
    """Check that a cell of an earlier command would be the same run by this one: cells are compared.

    Raises:
        RequestError: it would not; the message lists the keys that differ.
    """
    found = differences(load_resolved(_settings(folder, cell.cell)), cell.config)
    if not all(one.may_change for one in found):
        raise RequestError(
            f"{folder} holds the cell {cell.name} of the same sweep, whose other settings are not those of "
            f"this command. {describe_differences(found)}\nChoose another folder with run.dir=..."
        )


def _recorded(folder: Path, keys: tuple[str, ...], cells: Sequence[Cell]) -> Sweep:
    """Return the sweep's record with these cells, and those that the folder has already.

    Raises:
        RequestError: the folder holds a sweep of other keys, or a run.
    """
    if (folder / "config.yaml").is_file():
        raise RequestError(
            f"{folder} holds a run, and a sweep has a run's folder per cell. Choose another folder with "
            "run.dir=..."
        )
    if not is_sweep(folder):
        return Sweep(folder, keys, tuple(cells))
    there = read_sweep(folder)
    if there.keys != keys:
        raise RequestError(
            f"{folder} holds a sweep of {', '.join(there.keys)}. Expected the same keys, and these are "
            f"{', '.join(keys)}. Choose another folder with run.dir=..."
        )
    every = {cell.name: cell for cell in (*there.cells, *cells)}
    return Sweep(folder, keys, tuple(every.values()), there.failures)
