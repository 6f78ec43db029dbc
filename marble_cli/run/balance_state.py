"""Copy the state of a balance into the run's progress after each step, and restore it when a run resumes."""

import logging
from pathlib import Path

from torch import Tensor

from marble_cli.balance.base import Stateful
from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.errors import CheckpointError

log = logging.getLogger("marble.run")


def copy_balance_state(balance: object) -> dict[str, Tensor] | None:
    """Return a CPU copy of a balance's state; None if the balance has no state."""
    if not isinstance(balance, Stateful):
        return None
    return {name: tensor.detach().cpu().clone() for name, tensor in balance.state_dict().items()}


def restore_balance_state(balance: object, state: dict[str, Tensor] | None, checkpoint: Path) -> None:
    """Load the `state` in `checkpoint` into a balance; warn if the balance needs a state and there is none.

    Raises:
        CheckpointError: the balance refuses the state.
    """
    if not isinstance(balance, Stateful):
        return
    if state is None:
        log.warning(
            "%s holds no state of the balance (older releases did not write it); its averages start anew",
            checkpoint,
        )
        return
    try:
        balance.load_state_dict(state)
    except Exception as error:  # a plugin may raise anything
        reason = " ".join(str(error).split()).rstrip(". ")
        raise CheckpointError(
            f"{checkpoint} is damaged, or from another release of the balance, which refuses its state: "
            f"{type(error).__name__}: {reason}. {REMEDY}"
        ) from error
