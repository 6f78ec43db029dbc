"""The cells of the study: a method at a budget of images or computing, with a learning rate and a seed."""

from dataclasses import dataclass

REWARDS = ("clipscore", "colorfulness", "compressibility", "ocr", "objects")
TUNING_SEED = 100  # chooses the learning rates, on prompts of the training files
TUNING_PROMPTS, JUDGED_PROMPTS = 200, 300  # per source
RATES = (8e-4, 1.6e-3, 3.2e-3, 6.4e-3)  # learning rates that are tried
SCALES = (0.2, 0.4, 0.7, 1.0)  # weights of each merged specialist that are tried

COMMON = ("preset=tiny", "trainer.eval_every=0", "trainer.checkpoint_every=10", "logging.wandb.mode=disabled")


@dataclass(frozen=True)
class Budget:
    """A number of images, the same for every method; or the FLOP that these take if all are trained on.

    Attributes:
        steps: optimizer steps; a method of `COST` takes more of its cheaper ones, for the same FLOP.
        images: of these steps.
        overrides: of `marble train`.
        seeds: judged on held-out prompts.
        methods: compared at this budget; all if empty.
    """

    steps: int
    images: int
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...] = ()


BUDGETS = {
    "short": Budget(30, 4320, ("rollout.groups=12", "rollout.group_size=12"), seeds=(0, 1, 2, 3, 4)),
    "demo": Budget(
        70,
        20160,
        (),  # the preset's own
        seeds=(0, 1, 2),
        methods=(
            "marble",
            "marble_stale",
            "upgrad",
            "upgrad_stale",
            "weighted_sum",
            "advantage_sum",
            "equal",
            "paper",
            "marble_guarded",
            "sum_of_four",
            "sum_guarded",
        ),
    ),
}

STEPWISE = "balance=marble_stepwise"
EVERY_STEP = ("balance.mode=full", "balance.refresh_fraction=1")
AMORTISED = ("balance.mode=amortized", "balance.refresh_every=5", "balance.refresh_fraction=1")
STALE = (*AMORTISED, "balance.refresh_when=stale", "balance.refresh_every=10")
PAPER = "balance.norm_priority=0"
BASE, MARBLE, SEQUENTIAL = "base", "marble", "sequential"
SPECIALISTS = {f"only_{name}": name for name in REWARDS}
# Of the specialists, without further training.
MERGES = {"merge_concat": "concat", "merge_average": "average"}
PAIR = "rewards=[ocr,objects]"  # neither applies to a quarter of the prompts, so their groups are dead
CHEAPER: dict[str, tuple[str, ...]] = {
    "marble_select": (STEPWISE, *STALE, "trainer.select.fraction=0.5"),
    "pair": (PAIR, STEPWISE, *STALE),
    "pair_drop": (PAIR, STEPWISE, *STALE, "rollout.dead_groups=drop"),
    "marble_kl_every": (STEPWISE, *STALE, "algorithm.kl_every=4"),
}
FOUR = tuple(name for name in REWARDS if name != "compressibility")
GUARD = "rewards.compressibility.role=guard"
GUARDED: dict[str, tuple[str, ...]] = {
    "marble_guarded": (STEPWISE, *STALE, GUARD),
    "sum_of_four": (f"rewards=[{','.join(FOUR)}]", "balance=weighted_sum", *AMORTISED),
    "sum_guarded": ("balance=weighted_sum", *EVERY_STEP, GUARD),
}
# Methods with the learning rate of another, at which they are compared.
TUNED_AS = {
    **dict.fromkeys(("marble_guarded", *CHEAPER), "marble_stale"),
    **dict.fromkeys(("sum_of_four", "sum_guarded"), "weighted_sum"),
}
UNMATCHED = {*MERGES, *SPECIALISTS, *TUNED_AS}  # not compared at equal drift
WEIGHTED = {"weighted_sum": REWARDS, "weighted_mean": REWARDS, "sum_of_four": FOUR, "sum_guarded": FOUR}
# FLOP of a step, rollout included, over that of a step that trains on all images (`plan.work.add_passes`).
COST = {"marble_select": 0.72, "pair_drop": 0.86}
METHODS: dict[str, tuple[str, ...]] = {
    "marble": (STEPWISE,),  # a QP at every step on a quarter, at least one micro-batch
    "marble_whole": (STEPWISE, *EVERY_STEP),
    "marble_amortised": (STEPWISE, *AMORTISED),
    "marble_stale": (STEPWISE, *STALE),  # balance=marble_adaptive
    "paper_whole": (STEPWISE, *EVERY_STEP, PAPER),
    "paper": (STEPWISE, *AMORTISED, PAPER),
    "published": (
        STEPWISE,
        *AMORTISED,
        PAPER,
        "balance.amortize=advantage",
        "balance.refresh_fraction=0.001",
        "balance.shared_term=inside",
    ),
    "weighted_sum": ("balance=weighted_sum", *AMORTISED),
    "weighted_mean": ("balance=weighted_sum", "balance.reduce=mean", *AMORTISED),
    "advantage_sum": ("balance=advantage_sum", *AMORTISED),
    "equal": ("balance=equal", *AMORTISED),
    "upgrad": ("balance=upgrad", *EVERY_STEP),
    "upgrad_stale": ("balance=upgrad", *STALE),  # balance=upgrad_adaptive
    "dualproj": ("balance=torchjd:DualProj", *EVERY_STEP),
    "pcgrad": ("balance=torchjd:PCGrad", *EVERY_STEP),
    "nash": ("balance=torchjd:FairGrad", "balance.options={alpha: 1}", *EVERY_STEP),  # the Nash bargain
    SEQUENTIAL: (STEPWISE, *AMORTISED),
    **GUARDED,
    **CHEAPER,
    **{method: (f"rewards=[{name}]", STEPWISE, *AMORTISED) for method, name in SPECIALISTS.items()},
}


@dataclass(frozen=True)
class Cell:
    """One training run, or one merge of the specialists' runs, and its scores.

    Attributes:
        budget: key of `BUDGETS`.
        method: key of `METHODS` or `MERGES`.
        rate: learning rate; of a merge, the weight of each specialist.
        seed: of the run; the tuning seed is scored on other prompts.
    """

    budget: str
    method: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Path of the cell below a folder of runs or results."""
        return f"{self.budget}/{self.method}-{self.rate:.2g}-{self.seed}"

    @property
    def overrides(self) -> tuple[str, ...]:
        """Overrides of `marble train`."""
        budget = BUDGETS[self.budget]
        steps = round(budget.steps / COST.get(self.method, 1.0))
        own = (*METHODS[self.method], f"optimizer.lr={self.rate:.2g}", f"trainer.seed={self.seed}")
        return (*COMMON, *budget.overrides, f"trainer.steps={steps}", *own)


def methods(budget: str) -> list[str]:
    """Return the methods that are compared at a budget, in the order of the tables."""
    return list(BUDGETS[budget].methods or (*METHODS, *MERGES))


def tuning_cells(budget: str, method: str) -> list[Cell]:
    """Return the cells from which a method's learning rate can be chosen, in the order of the rates."""
    method = TUNED_AS.get(method, method)
    return [Cell(budget, method, rate, TUNING_SEED) for rate in (SCALES if method in MERGES else RATES)]


def judged_cells(budget: str, method: str, rate: float) -> list[Cell]:
    """Return the cells of a method at one learning rate that are judged."""
    return [Cell(budget, method, rate, seed) for seed in BUDGETS[budget].seeds]
