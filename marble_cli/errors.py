"""Errors that a user can act on: each says what was wrong, where, what was expected and what to do."""


class MarbleError(Exception):
    """A failure with a readable message; `exit_code` is the exit code of the command line."""

    exit_code = 1


class RequestError(MarbleError):
    """The request itself was wrong: an unknown override, reward, file or checkpoint."""

    exit_code = 2


class ConfigError(RequestError):
    """A configuration key, value or combination is wrong."""


class DataError(RequestError):
    """A prompt file is missing, empty or has a bad line."""


class CheckpointError(RequestError):
    """A checkpoint is missing or damaged, or belongs to another format or another run."""


class StorageError(MarbleError):
    """A file could not be written; earlier files are untouched."""


class TrainingError(MarbleError):
    """Training cannot continue, for example because its gradients are not finite."""


class HackingError(TrainingError):
    """The alarm of `trainer.on_hacking` ended the run: a trained reward rose while a watched one fell."""

    exit_code = 3


class DeviceMemoryError(MarbleError):
    """The device ran out of memory; the run can be resumed with smaller batches."""


class RewardError(MarbleError):
    """A reward plugin broke its contract or failed too often; the run cannot continue."""


class UnreachableError(RewardError):
    """The server of a reward does not answer."""


class PeerError(MarbleError):
    """Another process of the run failed; this process ends with the same message and exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class JoinError(MarbleError):
    """The processes of the run cannot reach one another when the run starts."""


class LostError(MarbleError):
    """The other processes of the run can no longer be reached: a process or the network failed."""


class BalanceError(MarbleError):
    """A balance could not be solved, or its constraints are infeasible."""
