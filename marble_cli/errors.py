"""Errors a user can act on: each says what was wrong, where, what was expected and what to do."""


class MarbleError(Exception):
    """A failure with a readable message; `exit_code` is what the command line exits with."""

    exit_code = 1


class RequestError(MarbleError):
    """The request itself was wrong: an unknown override, reward, file or checkpoint."""

    exit_code = 2


class ConfigError(RequestError):
    """A configuration key, value or combination is wrong."""


class DataError(RequestError):
    """A prompt file is missing, empty or has a bad line."""


class CheckpointError(RequestError):
    """A checkpoint is missing, damaged, of another format or of another run."""


class StorageError(MarbleError):
    """A checkpoint could not be written; earlier ones are untouched."""


class TrainingError(MarbleError):
    """Training cannot go on: its gradients are not finite."""


class DeviceMemoryError(MarbleError):
    """The device has no memory left; the run can go on with smaller batches."""


class RewardError(MarbleError):
    """A reward plugin broke its contract or failed too often; the run cannot go on."""


class UnreachableError(RewardError):
    """A reward's server does not answer."""


class PeerError(MarbleError):
    """Another process of the run failed and tells why; this one leaves with it and with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class JoinError(MarbleError):
    """The processes of the run cannot reach one another when it starts."""


class LostError(MarbleError):
    """The other processes of the run cannot be reached: one of them has died, or the network has."""


class BalanceError(MarbleError):
    """A balance could not be solved or was asked for something infeasible."""
