"""What was measured of the parts of a step, as a table."""

import statistics
from dataclasses import dataclass

import torch

from marble_cli.step.compiled_per_sample import SUPPORTED
from scripts.bench.report import Cell, Sheet
from scripts.bench.scenes import Scene
from scripts.bench.timing import ratio
from scripts.bench.whole_step import RECIPE, TRAINING, WITHOUT_KL

# Dense bfloat16 FLOP/s from the makers' data sheets; the first name that the GPU's own name contains counts.
PEAK = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,  # SXM
    "H200": 989e12,
    "A100": 312e12,
}
COLUMNS = {
    "what": "",
    "whose": "",
    "seconds": ".3f",
    "roofline": ".3f",
    "peak GiB": ".2f",
    "TFLOP": ".2f",
    "utilisation": ".0%",
    "speed-up": ".2f",
}


@dataclass(frozen=True)
class Measured:
    """What was measured of a part of a step.

    Attributes:
        part: of `PARTS`.
        whose: the recipe's, ours, or ours compiled.
        seconds: per round.
        peak: bytes.
        operations: FLOP.
        forecast: seconds by a roofline.
    """

    part: str
    whose: str
    seconds: list[float]
    peak: int
    operations: float
    forecast: float

    @property
    def median(self) -> float:
        """Seconds of the median round."""
        return statistics.median(self.seconds)


def parts_sheet(measured: list[Measured], ours: Scene, repeats: int) -> Sheet:
    """Return the table of all parts measured so far."""
    fastest = peak_speed()
    published = {one.part: one.seconds for one in measured if one.whose == RECIPE}
    published[WITHOUT_KL] = published.get(TRAINING, [])
    rows: list[tuple[Cell, ...]] = []
    for one in measured:
        utilisation = one.operations / one.median / fastest if fastest else None
        compared = one.whose != RECIPE and published[one.part]
        speed_up = ratio(published[one.part], one.seconds) if compared else None
        memory, teraflops = one.peak / 2**30, one.operations / 1e12
        rows.append((one.part, one.whose, one.median, one.forecast, memory, teraflops, utilisation, speed_up))
    note = (
        f"{len(ours.data.x0)} images of {ours.policy.tokens} tokens; medians of {repeats} alternating "
        "repeats, beside the seconds of an H100 SXM's roofline. Peaks exclude weights and adapters; "
        "utilisation is of the operations computed, against dense bfloat16."
    )
    if ours.policy.compiled and not SUPPORTED:
        note += f" With torch {torch.__version__} the trained pass of a compiled refresh stays eager."
    return Sheet("Parts of a step", note, COLUMNS, rows)


def peak_speed() -> float | None:
    """Return this GPU's FLOP/s in bfloat16, None if it is not in `PEAK`."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((speed for name, speed in PEAK.items() if name in gpu), None)
