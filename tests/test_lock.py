"""One run at a time in a folder: the holder is named, and the lock of a dead process is taken over."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from marble_cli import lock
from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.errors import RequestError
from marble_cli.lock import NAME, Holder, RunLock, is_held, this_process
from marble_cli.plan.plan import plan
from marble_cli.run.inputs import Inputs, read_inputs
from marble_cli.run.train import train

RunConfigMaker = Callable[..., RunConfig]

# Holds a folder's lock until its input ends; imports neither torch nor a model.
HOLD = """
import sys
from pathlib import Path
from marble_cli.lock import RunLock

with RunLock(Path(sys.argv[1])) as held:
    held.acquire()
    print("held", flush=True)
    {more}
    sys.stdin.read()
"""


@contextmanager
def holding(folder: Path, more: str = "pass") -> Iterator[subprocess.Popen[str]]:
    """Start another process that holds the folder's lock."""
    command = [sys.executable, "-c", HOLD.format(more=more), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def take(folder: Path) -> None:
    """Acquire the folder's lock and release it."""
    with RunLock(folder) as held:
        held.acquire()
        held.acquire()  # no effect
        assert Holder(**json.loads((folder / NAME).read_text())).pid == os.getpid()
    assert not (folder / NAME).exists()


def write(folder: Path, holder: Holder) -> None:
    (folder / NAME).write_text(json.dumps(asdict(holder)))


def test_lock_acquired_and_released_leaves_no_file(tmp_path: Path) -> None:
    for _ in range(2):
        take(tmp_path)
    held = RunLock(tmp_path)
    held.acquire()
    held.__exit__(ValueError, ValueError(), None)
    assert not is_held(tmp_path)
    with RunLock(tmp_path / "nowhere"):
        pass  # never acquired
    assert list(tmp_path.iterdir()) == []


def test_second_process_is_refused_with_the_holder(tmp_path: Path) -> None:
    with holding(tmp_path) as process:
        assert is_held(tmp_path)
        holder = rf"process {process.pid} on {this_process().host} \(since \d{{4}}-\d\d-\d\d .*\)"
        said = rf"{tmp_path} is in use: {holder} trains there\. Nothing was changed"
        for attempt in (lambda: take(tmp_path), RunLock(tmp_path).check):
            with pytest.raises(RequestError, match=said) as refused:
                attempt()
            assert refused.value.exit_code == 2
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    take(tmp_path)


def test_second_lock_in_one_process_is_refused(tmp_path: Path) -> None:
    with RunLock(tmp_path) as held:
        held.acquire()
        with pytest.raises(RequestError, match=rf"in use: process {os.getpid()} "):
            take(tmp_path)


def test_lock_of_a_killed_process_is_taken_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with holding(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / NAME).exists()
        assert not is_held(tmp_path)
        take(tmp_path)
    assert f"process {process.pid} on {this_process().host}" in caplog.text
    assert "has ended without releasing" in caplog.text


def test_lock_is_not_inherited_by_forked_children(tmp_path: Path) -> None:
    """A worker forked by a reward may outlive the run, but must not keep the lock."""
    more = "import os, time; child = os.fork(); child or time.sleep(60); print(child, flush=True)"
    with holding(tmp_path, more) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        try:
            os.kill(child, 0)  # the child still runs
            take(tmp_path)
        finally:
            os.kill(child, signal.SIGKILL)


ELSEWHERE = {"host": "node-7", "boot": "another"}


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),  # an earlier container, with our process id by chance
        ({"pid": 1}, True),  # another process's id by chance: the kernel's lock is free
        ({"host": "container-2"}, True),  # the same kernel under another host name
        ({"boot": "another"}, True),  # this machine was rebooted
        (ELSEWHERE, False),
        (ELSEWHERE | {"job": "99"}, False),  # another job
        (ELSEWHERE | {"job": "12", "restart": 1}, False),  # the job's second start, as this one is
        (ELSEWHERE | {"job": "12"}, True),  # the same job before its requeue
    ],
)
def test_left_lock_is_taken_over_only_if_its_holder_has_ended(
    changes: dict[str, str | int],
    taken: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    write(tmp_path, replace(this_process(), **({"started": 0, "job": "", "restart": 0} | changes)))  # type: ignore[arg-type]
    if taken:
        take(tmp_path)
        assert "has ended without releasing" in caplog.text
        return
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(
        RequestError, match=rf"process \d+ on node-7.*cannot be seen from.*delete {tmp_path / NAME}"
    ):
        take(tmp_path)
    assert is_held(tmp_path)
    assert (tmp_path / NAME).read_bytes() == before
    (tmp_path / NAME).unlink()
    take(tmp_path)


@pytest.mark.parametrize("alive", [True, False])
def test_lock_without_kernel_locks_depends_on_the_process(
    alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holding(tmp_path) as process:
        left = (tmp_path / NAME).read_text()
        if not alive:
            process.kill()
            process.wait()
            (tmp_path / NAME).write_text(left)

        def unsupported(*arguments: object) -> None:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(fcntl, "lockf", unsupported)
        if alive:
            with pytest.raises(RequestError, match=f"in use: process {process.pid} "):
                take(tmp_path)
        else:
            take(tmp_path)
        # Perhaps another container's process ids.
        write(tmp_path, replace(this_process(), started=0, host="container-2"))
        with pytest.raises(RequestError, match="cannot be seen from"):
            take(tmp_path)


def test_lock_released_while_opening_is_acquired_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock on a deleted file would exclude nobody."""
    examine, opened = RunLock._examine, []

    def late(self: RunLock, descriptor: int, ours: Holder) -> Holder | None:
        if not opened:
            self.path.unlink()
        opened.append(descriptor)
        return examine(self, descriptor, ours)

    monkeypatch.setattr(RunLock, "_examine", late)
    take(tmp_path)
    assert len(opened) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"host": 1}', "not json"])
def test_damaged_lock_file_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(RequestError, match=rf"{tmp_path / NAME} does not say which process.*delete it"):
        take(tmp_path)
    assert (tmp_path / NAME).read_text() == text


def test_lock_file_of_another_user_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, who may open any file."""
    (tmp_path / NAME).touch()

    def refuse(path: Path, *rest: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(lock.os, "open", refuse)
    for ask in (RunLock(tmp_path).check, RunLock(tmp_path).acquire):
        with pytest.raises(RequestError, match=rf"{tmp_path / NAME} cannot be opened: .*another user"):
            ask()


def test_empty_lock_file_is_free(tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    take(tmp_path)


def test_empty_lock_file_with_a_kernel_lock_is_held(tmp_path: Path) -> None:
    with holding(tmp_path, "import os; os.truncate(held.path, 0); print('cut', flush=True)") as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(RequestError, match="in use: another process"):
            take(tmp_path)


def test_lock_is_released_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    with RunLock(Path("run")) as held:
        held.acquire()
        monkeypatch.chdir("/")
    assert list((tmp_path / "run").iterdir()) == []


def test_run_in_a_locked_folder_changes_nothing(run_config: RunConfigMaker, tmp_path: Path) -> None:
    config = run_config(f"run.dir={tmp_path}")
    with holding(tmp_path) as process:
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        for attempt in (
            lambda: train(config, resume="auto"),
            lambda: train(config, resume="never"),
            lambda: plan(config),
        ):
            with pytest.raises(RequestError, match=f"in use: process {process.pid} "):
                attempt()
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_run_holds_its_lock_from_start_to_end(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "marble_cli.run.train.prepare_folder", lambda folder, *rest: seen.append((folder / NAME).read_text())
    )
    config = run_config(f"run.dir={tmp_path / 'run'}", "trainer.steps=1")
    assert train(config, resume="auto") == 0
    assert json.loads(seen[0])["pid"] == os.getpid()
    assert not (tmp_path / "run" / NAME).exists()
    (tmp_path / "run" / "config.yaml").write_text(dump(config))
    with pytest.raises(RequestError, match="--resume never"):
        train(config, resume="never")
    assert not (tmp_path / "run" / NAME).exists()


def test_run_that_finds_another_in_its_new_folder_changes_nothing(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began and ended while this one read its prompts."""
    config, folder = run_config(f"run.dir={tmp_path / 'run'}", "trainer.steps=1"), tmp_path / "run"

    def meanwhile(*arguments: Any, **named: Any) -> Inputs:
        folder.mkdir()
        (folder / "config.yaml").write_text("theirs")
        return read_inputs(*arguments, **named)

    monkeypatch.setattr("marble_cli.run.begin.read_inputs", meanwhile)
    with pytest.raises(RequestError, match="has become the folder of another run meanwhile"):
        train(config, resume="auto")
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("config.yaml", "theirs")]


def test_lock_file_is_json_with_the_holder(tmp_path: Path) -> None:
    with RunLock(tmp_path) as held:
        held.acquire()
        assert json.loads((tmp_path / NAME).read_text()).keys() == {
            "host",
            "boot",
            "pid",
            "started",
            "since",
            "job",
            "restart",
        }
    assert lock._start_tick(os.getpid()) > 0
    assert lock._start_tick(2**30) == -1
