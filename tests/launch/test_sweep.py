"""The cells of a sweep on this machine: one after another, with failures, signals and a second Ctrl+C."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from marble_cli.config.compose import dump, load_resolved
from marble_cli.errors import RequestError
from marble_cli.launch.sweep import SignalRelay, check_cells, run_sweep
from marble_cli.lock import RunLock
from marble_cli.sweep.record import read_sweep
from tests.distributed.processes import wait_for
from tests.launch.cells import seeds

pytestmark = pytest.mark.usefixtures("cells")


def started(tmp_path: Path) -> dict[int, list[str]]:
    """Return `--resume` of every start, by seed."""
    files = (tmp_path / "s").glob("*/started")
    return {int(file.parent.name.partition("=")[2]): file.read_text().split() for file in files}


def test_cells_that_fail_are_named_and_do_not_stop_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_sweep(seeds(1, 2, 3), "auto") == 1
    assert started(tmp_path) == {1: ["auto"], 2: ["auto"], 3: ["auto"]}
    why = {"trainer.seed=1": "reward ocr failed on 9 images (exit code 1)"}
    why["trainer.seed=2"] = "its process was killed by SIGKILL"
    assert read_sweep(tmp_path / "s").failures == why
    shown, errors = capfd.readouterr()
    assert shown.index("cell 1 of 3: trainer.seed=1") < shown.index("output of 1")
    assert "marble: a warning\n" in errors, "what a cell says on standard error is shown"
    rows = [line.split() for line in shown.splitlines() if line.startswith("trainer.seed=")]
    assert rows[:3] == [["trainer.seed=1", "0"], ["trainer.seed=2", "0"], ["trainer.seed=3", "5"]]
    assert [" ".join(row[1:]) for row in rows[3:]] == list(why.values())
    assert shown.endswith(f"report: marble report {tmp_path / 's'}\n")


def test_a_sweep_without_a_failure_is_0_and_keeps_the_failures_of_other_cells(tmp_path: Path) -> None:
    assert run_sweep(seeds(1), "auto") == 1
    assert run_sweep(seeds(3, 4), "never") == 0
    assert started(tmp_path) == {1: ["auto"], 3: ["never"], 4: ["never"]}
    assert set(read_sweep(tmp_path / "s").failures) == {"trainer.seed=1"}


def signalled(tmp_path: Path, numbers: list[int], *cells: int) -> int:
    """Run cells, and send the signals one by one: the next when the cell has caught the last."""
    seen = tmp_path / "s" / f"trainer.seed={cells[0]}"

    def send() -> None:
        for count, number in enumerate(numbers):
            wait_for((seen / ("caught" if count else "ready")).exists, "the cell", 20)
            os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    return run_sweep(seeds(*cells), "auto")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)]
)
def test_a_signal_stops_the_cell_and_the_sweep(tmp_path: Path, number: int, code: int) -> None:
    before = signal.getsignal(number)
    assert signalled(tmp_path, [number], 7, 3) == code
    assert started(tmp_path) == {7: ["auto"]}
    assert (tmp_path / "s" / "trainer.seed=7" / "caught").read_text() == "1", "it arrives once"
    assert read_sweep(tmp_path / "s").failures == {}
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_kills_the_cell(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        signalled(tmp_path, [signal.SIGINT, signal.SIGINT], 8, 3)
    assert (tmp_path / "s" / "trainer.seed=8" / "caught").read_text() == "1"
    assert started(tmp_path) == {8: ["auto"]}
    assert not (tmp_path / "s" / "run.lock").exists()


def test_a_signal_before_the_cell_is_there_ends_it_and_leaves_its_failure(tmp_path: Path) -> None:
    """It arrives between the sweep's last look and the start of the process."""
    with SignalRelay() as relay:
        relay.exit_code = 130
        assert relay.run(["/bin/sleep", "60"]) is None
    planned = seeds(7)
    planned.sweep.failures["trainer.seed=7"] = "its last evaluation failed"
    seen = tmp_path / "s" / "trainer.seed=7"
    threading.Thread(
        target=lambda: (
            wait_for((seen / "ready").exists, "the cell", 20),
            os.kill(os.getpid(), signal.SIGTERM),
        )
    ).start()
    assert run_sweep(planned, "auto") == 143
    assert read_sweep(tmp_path / "s").failures == {"trainer.seed=7": "its last evaluation failed"}


def test_a_signal_to_the_cell_alone_stops_the_sweep(tmp_path: Path) -> None:
    with SignalRelay() as relay:
        assert relay.run(["/bin/sh", "-c", "exit 143"]) is None
        assert relay.exit_code == 143


def test_cells_that_cannot_run_are_named_before_any_is_started(tmp_path: Path) -> None:
    def refused(*more: str, resume: str = "auto") -> Iterator[str]:
        with pytest.raises(RequestError) as error:
            run_sweep(seeds(3, 4, more=more), resume)
        yield str(error.value)

    assert "cell trainer.seed=3: trainer.fsdp.replicas=3: 2 processes cannot" in next(
        refused("trainer.parallel=fsdp", "trainer.fsdp.replicas=3", "launcher.nproc=2")
    )
    assert "cell trainer.seed=3: launcher.nodes=2: launcher=local" in next(refused("launcher.nodes=2"))
    assert "cannot each have a share" in next(refused("balance.floor=0.9"))
    assert "no-such" in next(refused(resume="no-such"))
    assert not (tmp_path / "s").exists()


def test_further_cells_have_the_settings_of_those_before(tmp_path: Path) -> None:
    (one,) = seeds(3).cells
    folder = Path(one.config.run.dir)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(one.config))
    seeds(3).sweep.write()
    assert [cell.name for cell in seeds(4, more=("trainer.steps=9",)).sweep.cells] == [
        "trainer.seed=3",
        "trainer.seed=4",
    ]
    with pytest.raises(RequestError, match=r"the cell trainer\.seed=3 .*\n  optimizer\.lr: .*0\.5 now"):
        seeds(4, more=("optimizer.lr=0.5",))


def test_two_sweeps_in_one_folder_are_refused(tmp_path: Path) -> None:
    planned = seeds(3)
    planned.sweep.folder.mkdir()
    with RunLock(planned.sweep.folder) as lock:
        lock.acquire()
        with pytest.raises(RequestError, match="is in use"):
            run_sweep(seeds(4), "auto")
    assert started(tmp_path) == {}


def test_a_cell_s_configuration_is_the_one_that_was_planned(tmp_path: Path) -> None:
    planned = seeds(3)
    assert check_cells(planned, "auto") == list(planned.cells)
    file = tmp_path / "config.yaml"
    file.write_text(dump(planned.cells[0].config))
    assert load_resolved(file) == planned.cells[0].config
