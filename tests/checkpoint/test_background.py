"""One job at a time beside the thread that trains, and no error is lost."""

import threading
import weakref
from functools import partial

import pytest

from marble_cli.checkpoint.background import Background


def test_jobs_run_one_at_a_time_in_another_thread() -> None:
    background, release, order = Background(), threading.Event(), list[object]()

    def first() -> None:
        assert release.wait(60)
        order.extend(["first", threading.current_thread() is threading.main_thread()])

    background.run(first)
    assert order == [], "it waits in its thread"
    release.set()
    background.run(lambda: order.append("second"))
    background.wait()
    assert order == ["first", False, "second"]


def test_error_waits_for_the_caller_and_is_raised_once() -> None:
    background = Background()

    def fail() -> None:
        raise OSError("no space")

    background.run(fail, now=True)
    assert background.failed
    with pytest.raises(OSError, match="no space"):
        background.run(lambda: pytest.fail("a job after one that failed"))
    assert not background.failed
    background.wait()


def test_job_that_must_end_at_once_runs_in_this_thread() -> None:
    background, threads = Background(), list[threading.Thread]()
    background.run(lambda: threads.append(threading.current_thread()), now=True)
    assert threads == [threading.current_thread()]
    assert not background.failed


def test_failed_job_keeps_no_memory() -> None:
    class Copy:
        """A copy of the run's state."""

    held, background = Copy(), Background()
    seen = weakref.ref(held)

    def fail(copy: Copy) -> None:
        try:
            raise OSError("no space")
        except OSError as error:
            raise RuntimeError("not written") from error

    background.run(partial(fail, held))
    del held
    with pytest.raises(RuntimeError, match="not written"):
        background.wait()
    assert seen() is None
