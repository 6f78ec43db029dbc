"""Run one job at a time in a thread beside the one that trains."""

import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future


class Background:
    """Runs jobs one at a time; the error of a job waits for `wait` and is never lost.

    The thread is a daemon, unlike those of an executor: a process that is told to end at once does so.
    """

    def __init__(self) -> None:
        self._job: Future[None] | None = None

    def run(self, job: Callable[[], object], *, now: bool = False) -> None:
        """Wait for the job before, then start `job`; with `now`, finish it in this thread.

        Raises:
            Exception: the job before failed; `job` is not started.
        """
        self.wait()
        self._job = Future()
        if now:
            _finish(self._job, job)
        else:
            threading.Thread(target=_finish, args=(self._job, job), name="background", daemon=True).start()

    @property
    def failed(self) -> bool:
        """Tell, without waiting, whether the job has failed and `wait` has not raised its error yet."""
        return self._job is not None and self._job.done() and self._job.exception() is not None

    def wait(self) -> None:
        """Wait for the job, if there is one.

        Raises:
            Exception: the job's error, once.
        """
        if self._job is not None:
            job = self._job
            job.exception()  # waits; if a signal interrupts this, the job is waited for again
            self._job = None
            job.result()


def _finish(future: Future[None], job: Callable[[], object]) -> None:
    try:
        job()
    except BaseException as error:
        del job  # with the frames below it may hold a copy of the run's state
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__context__
        future.set_exception(error)
    else:
        future.set_result(None)
