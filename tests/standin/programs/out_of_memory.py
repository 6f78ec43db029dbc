"""Run `marble` with the arguments given; in step 2 the rank RANK_WITHOUT_MEMORY has no memory to spare."""

import os
from typing import Any

import torch

from marble_cli.cli.app import main
from marble_cli.step.direction import Descent

direct = Descent.direct
SPARE = 2**21  # bytes, the allocator's smallest segment


def bounded(self: Descent, number: int, *rest: Any) -> Any:
    if number == 2 and os.environ.get("RANK", "0") == os.environ["RANK_WITHOUT_MEMORY"]:
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + SPARE) / whole)
    return direct(self, number, *rest)


Descent.direct = bounded  # type: ignore[method-assign]
main()
