"""Run `marble` with the arguments given; in the training of step 2 the device has no memory to spare.

Of several ranks, that of the rank that RANK_WITHOUT_MEMORY names; of one, its own.
On a CPU, which cannot be bounded so, the step asks for more memory than a machine has.
"""

import os
from typing import Any

import torch

from marble_cli.cli.app import main
from marble_cli.step.direction import Descent

direct = Descent.direct
SPARE = 2**21  # bytes, the allocator's smallest segment


def bounded(self: Descent, number: int, *rest: Any) -> Any:
    if number == 2 and os.environ.get("RANK", "0") == os.environ.get("RANK_WITHOUT_MEMORY", "0"):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            whole = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + SPARE) / whole)
        else:
            torch.empty(2**60, dtype=torch.uint8)
    return direct(self, number, *rest)


Descent.direct = bounded  # type: ignore[method-assign]
main()
