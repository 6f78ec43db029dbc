"""What a balance remembers of earlier steps: copied into a run's progress after each step, put back when it resumes."""

import logging
from pathlib import Path

from torch import Tensor

from marble_cli.balance.base import Stateful
from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.errors import CheckpointError

log = logging.getLogger("marble.run")


def remembered(balance: object) -> dict[str, Tensor] | None:
    """Return a copy of the state of a balance on the CPU; None of a balance without."""
    if not isinstance(balance, Stateful):
        return None
    return {name: tensor.detach().cpu().clone() for name, tensor in balance.state_dict().items()}


def recall(balance: object, state: dict[str, Tensor] | None, checkpoint: Path) -> None:
    """Put the `state` that `checkpoint` holds back into a balance; say so if there is none for one that needs it.

    Raises:
        CheckpointError: the state is not of this balance.
    """
    if not isinstance(balance, Stateful):
        return
    if state is None:
        log.warning(
            "%s holds no state of the balance, as checkpoints of older releases do not; its averages start anew",
            checkpoint,
        )
        return
    try:
        balance.load_state_dict(state)
    except Exception as error:  # a plugin's own kind
        reason = " ".join(str(error).split()).rstrip(". ")
        raise CheckpointError(
            f"{checkpoint} is damaged, or of another release of the balance, which refuses its state: "
            f"{type(error).__name__}: {reason}. {REMEDY}"
        ) from error
