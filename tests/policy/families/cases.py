"""Load each tiny pipeline plainly and as a policy, and run the plain pipeline for comparison."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from marble_cli.config.enums import OdeSolver
from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Adapter, PromptEmbeddings
from marble_cli.policy.load import load_policy
from marble_cli.policy.processors import read_processors
from marble_cli.rollout.ode import make_scheduler, sample
from marble_cli.seeds import noise
from tests.policy.families.differences import record
from tests.policy.families.edits import Drawn, seen
from tests.policy.families.pipelines import Tiny

PROMPTS = ["a red cup", "two boats and a very long sign", "a cat"]


NEGATIVES = ["blurred", "", "grey, dull and with a frame"]


TIMES = torch.tensor([0.25, 0.5, 1.0])


STEPS = 3


@dataclass(frozen=True, eq=False)
class Case:
    """One family: its tiny pipeline in a folder, loaded plainly and as a policy with random adapters."""

    name: str  # in `TINY`
    tiny: Tiny
    overrides: tuple[str, ...]
    model: ModelConfig
    plain: Any
    policy: Any
    randomise: Callable[..., None]

    def load(self, **changes: Any) -> Any:
        """A policy of the model with other settings and the same adapters, which tests share."""
        other = {key: value for key, value in changes.items() if value != getattr(self.model, key)}
        return _load(self, frozenset(other.items())) if other else self.policy

    @cached_property
    def drawn(self) -> "Run":
        """What the plain pipeline draws without guidance."""
        return plain_run(self, self.plain)

    @cached_property
    def cached(self) -> Any:
        """The policy with a cache of embeddings, which tests share."""
        return self.load(embedding_cache=f"{self.model.path}-embeddings")

    def record(self, proof: str, difference: Tensor | float) -> None:
        """Keep the largest absolute value of what a proof found, for docs/models.md."""
        record(self.name, proof, difference)

    @property
    def network(self) -> str:
        """The name of the pipeline's network that is trained."""
        name: str = self.policy.family.network
        return name

    @property
    def times(self) -> Tensor:
        """Times of three samples; those of a model that predicts noise or v end before 1."""
        return TIMES * (0.9 if self.network == "unet" else 1.0)

    def start(self) -> Tensor:
        """Noise [3, C, H, W] of a rollout."""
        return noise(0, "test", 0, list(range(len(PROMPTS))), self.policy.latent_shape)

    @property
    def edits(self) -> bool:
        """Whether the model is given pictures."""
        return bool(self.policy.family.conditions)

    def pictures(self, prompt: str) -> tuple[Drawn, ...]:
        """The pictures that a prompt of a rollout starts from."""
        return tuple(Drawn(prompt, place) for place in range(self.tiny.pictures if self.edits else 0))

    def encode(
        self, policy: Any, prompts: Sequence[str] = PROMPTS, *, negative: bool = False
    ) -> PromptEmbeddings:
        """The policy's embeddings of prompts, with the pictures that belong to them.

        Those of the case's own policy are computed once.
        """
        if policy is self.policy:
            return _encode(self, tuple(prompts), negative, self.edits)
        return self.encode_anew(policy, prompts, negative=negative)

    def encode_anew(
        self, policy: Any, prompts: Sequence[str] = PROMPTS, *, negative: bool = False
    ) -> PromptEmbeddings:
        """As `encode`, by the policy's encoders at each call."""
        pictures = [self.pictures(prompt) for prompt in prompts] if self.edits else None
        found: PromptEmbeddings = policy.encode(list(prompts), pictures, negative=negative)
        return found

    def scheduler(self, solver: OdeSolver) -> Any:
        policy = self.policy
        return make_scheduler(policy.scheduler_config(), solver, STEPS, policy.tokens, even=policy.even_times)

    @torch.no_grad()
    def images(self, policy: Any, adapter: Adapter, solver: OdeSolver = OdeSolver.euler) -> Tensor:
        """As a rollout draws them, uint8 [3, 3, H, W], or [3, F, 3, H, W]."""
        embeddings = self.encode(policy)
        x0 = sample(
            lambda xt, t: policy.velocity(xt, t, embeddings, adapter), self.start(), self.scheduler(solver)
        )
        images: Tensor = policy.decode(x0)[0]
        return images


@cache
def _encode(case: Case, prompts: tuple[str, ...], negative: bool, edits: bool) -> PromptEmbeddings:
    return case.encode_anew(case.policy, prompts, negative=negative)


@cache
def _load(case: Case, changes: frozenset[tuple[str, Any]]) -> Any:
    policy = load_policy(replace(case.model, **dict(changes)), seed=0)
    case.randomise(policy)
    return policy


def load_plain(folder: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """Sana's, Wan's and Stable Diffusion's pipelines take the Euler solver here, with their own times."""
    folder = str(folder)  # by which pipelines are remembered
    index = DiffusionPipeline.load_config(folder)
    own = read_processors(ModelConfig(), Path(folder), index)
    absent = [name for name, kind in index.items() if kind == [None, None]]
    read: Any = {"local_files_only": True, "dtype": dtype, **dict.fromkeys((*own, *absent))}
    pipeline = DiffusionPipeline.from_pretrained(folder, **read)
    pipeline.register_modules(**own)
    pipeline.set_progress_bar_config(disable=True)
    if type(pipeline).__name__ in ("SanaPipeline", "WanPipeline"):
        pipeline.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    if hasattr(pipeline, "unet"):
        pipeline.register_modules(scheduler=EulerDiscreteScheduler.from_config(pipeline.scheduler.config))
    return pipeline


@dataclass(frozen=True)
class Run:
    """The results of a plain pipeline, its times and latents as those of a flow model."""

    times: Tensor  # [n + 1]
    latents: Tensor  # [n + 1, 3, C, H, W], or [n + 1, 3, C, F, H, W]
    images: Tensor  # [3, 3, H, W] in [0, 1], or [3, F, 3, H, W]


def plain_run(case: Case, pipeline: Any, **more: Any) -> Run:
    """Pictures are given to the pipeline one by one: some take several for those of one prompt."""
    if not case.edits:
        return _plain_run(case, pipeline, slice(None), **more)
    size = read_resolution(case.tiny.resolution)
    pictures = [seen(case.pictures(prompt), size.width, size.height) for prompt in PROMPTS]
    runs = [
        _plain_run(
            case,
            pipeline,
            slice(row, row + 1),
            image=given[0] if len(given) == 1 else given,
            **{key: value[row] if isinstance(value, list) else value for key, value in more.items()},
        )
        for row, given in enumerate(pictures)
    ]
    latents = torch.cat([run.latents for run in runs], dim=1)
    return Run(runs[0].times, latents, torch.cat([run.images for run in runs]))


def _plain_run(case: Case, pipeline: Any, rows: slice, **more: Any) -> Run:
    begin, size = case.start()[rows], read_resolution(case.tiny.resolution)
    seen = [pipeline._pack_latents(begin, *begin.shape) if case.tiny.packed else begin]

    def keep(_: Any, step: int, t: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(state["latents"])
        return {}

    drawn = pipeline(
        prompt=list(PROMPTS[rows]),
        num_inference_steps=STEPS,
        height=size.height,
        width=size.width,
        latents=seen[0].to(pipeline.vae.dtype),
        output_type="pt",
        callback_on_step_end=keep,
        **{**case.tiny.arguments, **more},
    )
    images = drawn.frames if "num_frames" in case.tiny.arguments else drawn.images
    if case.tiny.packed:
        scale = pipeline.vae_scale_factor
        seen = [
            pipeline._unpack_latents(x, size.height, size.width, scale).reshape(begin.shape) for x in seen
        ]
    # FLUX.2's pipelines are given latents and have tokens.
    seen = [x if x.ndim == begin.ndim else x.mT.reshape(begin.shape) for x in seen]
    times, latents = pipeline.scheduler.sigmas, torch.stack(seen)
    if case.network == "unet":  # x0 + s eps at noise levels s = t / (1 - t)
        latents[0] *= pipeline.scheduler.init_noise_sigma
        latents = latents / (1 + times[:, None, None, None, None])
        times = (times.double() / (1 + times.double())).float()
    return Run(times, latents, images)


def assert_same_images(got: Tensor, plain: Tensor) -> None:
    """uint8 against 0 to 1: no further apart than rounding to whole numbers."""
    assert got.float().std() > 5
    assert got[0].ne(got[1]).any()
    assert (got - plain * 255).abs().max() < 0.51
