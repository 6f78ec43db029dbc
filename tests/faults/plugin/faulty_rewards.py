"""A reward that fails on schedule: it raises, hangs, answers inf, nan or short, or spoils what is trained.

FAULTY holds the schedule as JSON, {"batch": [fault, attempts]}: how many attempts at that batch fail.
Batch 0 is the preflight's. FAULTY_RANK names the only rank that fails.
"""

import json
import os
import time

import torch

seen = {"batch": -1, "attempt": 0, "images": b""}  # of the process: a reward that hung is built anew
armed = {"now": False}


def spoil(module, inputs, output):
    """Put a NaN into whatever is trained through, as a device with a bad cell does."""
    if armed["now"] and torch.is_tensor(output) and output.requires_grad:
        return output * torch.nan
    return None


torch.nn.modules.module.register_module_forward_hook(spoil)


class Faulty:
    """How bright a picture is, 0 to 1."""

    def __init__(self):
        concerned = os.environ.get("FAULTY_RANK") in (None, os.environ.get("RANK", "0"))
        self.schedule = json.loads(os.environ.get("FAULTY", "{}")) if concerned else {}

    def __call__(self, images):
        what = self.fault(images.numpy().tobytes())
        scores = images.float().mean(dim=(1, 2, 3)) / 255
        armed["now"] = what == "spoils"
        if what == "raises":
            raise RuntimeError("the judge is out of order")
        if what == "hangs":
            time.sleep(3600)
        if what in ("nan", "inf"):
            scores[::2] = float(what)
        return scores[1:] if what == "short" else scores

    def fault(self, images):
        """Return this attempt's fault, if any; the same images again are another attempt at the batch."""
        again = images == seen["images"]
        seen.update(batch=seen["batch"] + (not again), attempt=again * seen["attempt"] + 1, images=images)
        what, attempts = self.schedule.get(str(seen["batch"]), (None, 0))
        return what if seen["attempt"] <= attempts else None
