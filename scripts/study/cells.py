"""The cells of the study: overrides of `marble train` per method, at equal image budgets."""

REWARDS = ("clipscore", "colorfulness", "compressibility", "ocr", "objects")
SEEDS = (0, 1, 2)
STEPS = 30
EVAL_PROMPTS = 300  # held-out prompts per source
BUDGET = (
    "preset=tiny",
    "rollout.groups=12",
    "rollout.group_size=12",
    f"trainer.steps={STEPS}",
    "trainer.eval_every=0",
    "trainer.checkpoint_every=6",
    "logging.wandb.mode=disabled",
    f"trainer.eval_prompts={EVAL_PROMPTS}",
)
AMORTISED = ("balance.mode=amortized", "balance.refresh_every=5", "balance.refresh_fraction=1")
BASE, SEQUENTIAL, WEIGHTED = "base", "sequential", "weighted_sum"
PAPER, FLOOR = "balance.norm_priority=0", "balance.floor=0.12"
METHODS: dict[str, tuple[str, ...]] = {
    BASE: (),
    "marble": ("balance.refresh_fraction=0.5",),  # one of two micro-batches
    "marble_whole": ("balance.refresh_fraction=1",),
    "marble_amortised": AMORTISED,
    "marble_advantage": (*AMORTISED, "balance.amortize=advantage"),
    "paper": (*AMORTISED, PAPER),
    "paper_floor": (*AMORTISED, PAPER, FLOOR),
    "paper_floor_whole": ("balance.refresh_fraction=1", PAPER, FLOOR),
    "published": (
        *AMORTISED,
        PAPER,
        "balance.amortize=advantage",
        "balance.refresh_fraction=0.001",
        "balance.shared_term=inside",
    ),
    "output_space": (
        "balance=output_space",
        "balance.mode=output_space",
        "balance.refresh_every=5",
        PAPER,
        FLOOR,
    ),
    "upgrad": ("balance=torchjd:UPGrad", *AMORTISED),
    "equal": ("balance=equal", *AMORTISED),
    WEIGHTED: ("balance=weighted_sum", *AMORTISED),
    "advantage_sum": ("balance=advantage_sum", *AMORTISED),
    SEQUENTIAL: AMORTISED,
    **{f"only_{name}": (f"rewards=[{name}]", *AMORTISED) for name in REWARDS},
}
ABLATIONS: dict[str, tuple[str, ...]] = {
    "warmup_5": (*AMORTISED, "balance.warmup=5"),
    "refresh_10": (*AMORTISED, "balance.refresh_every=10"),
    "refresh_50": (*AMORTISED, "balance.refresh_every=50"),
    "rho_0": (*AMORTISED, "balance.ema=0"),
    "rho_0.5": (*AMORTISED, "balance.ema=0.5"),
    "rho_0.9": (*AMORTISED, "balance.ema=0.9"),
    "shared_inside": (*AMORTISED, "balance.shared_term=inside"),
    "fraction_0.5": (*AMORTISED, "balance.refresh_fraction=0.5"),
    "norm_priority_0.5": (*AMORTISED, "balance.norm_priority=0.5"),
}
CELLS = METHODS | ABLATIONS
