"""The training loop; its methods follow docs/explanation/algorithm.md line by line."""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from marble_cli.config.schema import RunConfig, TrainingNoise
from marble_cli.data.prompts import Prompt
from marble_cli.data.schedule import PromptSampler
from marble_cli.distributed.layout import Layout
from marble_cli.distributed.ranks import Ranks
from marble_cli.distributed.shards import as_dtensor, local
from marble_cli.errors import StorageError, TrainingError
from marble_cli.evaluate.score import Evaluation, score_policy
from marble_cli.evaluate.verdict import base_scores, judge
from marble_cli.interrupts import Interrupt
from marble_cli.plan.checks import check_rewards
from marble_cli.plan.memory import bounded
from marble_cli.policy.base import Policy
from marble_cli.policy.trainable.ema import behaviour_eta, blend, ema_decay
from marble_cli.rewards.scorer import Scorer
from marble_cli.rollout.collect import Rollout, Samples
from marble_cli.run.balance_state import remembered
from marble_cli.run.checkpoints import Checkpoints
from marble_cli.run.inspection import keep_batch
from marble_cli.run.state import Progress
from marble_cli.step.batches import TrainingSet, training_times
from marble_cli.step.direction import Descent
from marble_cli.step.reward_signal import Signal, describe, read_signal

log = logging.getLogger("marble.run")

SMALLER_ROLLOUT = "Lower rollout.batch_size"
SMALLER_TRIAL = "Free the device, or have rewards compute elsewhere (rewards.<name>.device=cpu or .url)"
SMALLER_ENCODERS = "Free the device or take one with more memory"
SMALLER_TRAINING = "Lower trainer.micro_batch_size or set model.gradient_checkpointing=true"


class Recorder(Protocol):
    """Where figures, pictures and progress go; every rank has one, only the main rank's writes."""

    def stage(self, name: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...
    def message(self, text: str) -> None: ...
    def record(self, metrics: dict[str, Any]) -> None: ...
    def pictures(self, step: int, evaluation: Evaluation) -> None: ...


@dataclass
class Trainer:
    """Everything a run is made of; `run` goes from `progress.step` to `config.trainer.steps`."""

    config: RunConfig
    folder: Path
    policy: Policy
    optimizer: torch.optim.Optimizer
    scorer: Scorer  # of the trained rewards
    judges: Scorer  # of those and the watched ones
    sampler: PromptSampler
    held_out: list[Prompt]
    rollout: Rollout  # of the images that are trained on
    judged: Rollout  # of those that are judged
    descent: Descent
    layout: Layout
    recorder: Recorder
    progress: Progress
    prepared: int = 0  # the last step whose prompts the policy has been told of
    skipped: int = 0  # steps in a row without a finite gradient

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(
            self.folder, self.config.trainer, self.policy, self.optimizer, self.layout, self.progress
        )

    @property
    def ranks(self) -> Ranks:
        return self.layout.ranks

    def run(self, interrupt: Interrupt) -> int:
        """Train to the last step; returns the exit code, with a checkpoint written whatever it is.

        Raises:
            RewardError: a reward failed too often; a checkpoint of the last finished step is written first.
            StorageError: there is no room for a checkpoint or for the metrics; earlier checkpoints are whole.
        """
        with self.checkpoints.salvage():
            return self.go(interrupt)

    def go(self, interrupt: Interrupt) -> int:
        """Step after step, with evaluations and checkpoints where they are due; returns the exit code."""
        settings = self.config.trainer
        with self.ranks.raise_together(), bounded("when the rewards were first tried", SMALLER_TRIAL):
            check_rewards(self.rollout, self.judges, self.sampler.sources)
        if settings.eval_every:
            with bounded("while prompts were encoded", SMALLER_ENCODERS):
                own = [self.held_out[i] for i in self.ranks.padded_rank_indices(len(self.held_out))]
                with self.ranks.raise_together():
                    self.judged.prepare(own)
        if self.judgement_due():
            self.evaluate()
        while self.progress.step < settings.steps:
            step = self.progress.step + 1
            self.prepare(step)
            metrics = self.step(step)
            with self.ranks.raise_together():
                self.recorder.record(metrics)
            self.progress.balance = remembered(self.descent.balance)
            self.progress.step, self.checkpoints.mid_update = step, False
            best = self.evaluate() if self.judgement_due() else False
            stop = self.ranks.any(interrupt.exit_code is not None)
            if stop or best or step == settings.steps or step % settings.checkpoint_every == 0:
                self.checkpoints.save(best)
            if stop:
                self.recorder.message(f"stopped by a signal after step {step}; a checkpoint is written")
                return interrupt.exit_code or 143
        if not self.checkpoints.up_to_date:
            self.checkpoints.save(False)
        return 0

    def prepare(self, step: int) -> None:
        """Tell the policy of the prompts to come on this rank, once for every so many steps."""
        settings = self.config.trainer
        if step > self.prepared:
            self.prepared = min(settings.steps, step + settings.encode_ahead - 1)
            steps = [self.sampler.step(s) for s in range(step, self.prepared + 1)]
            own = self.ranks.rank_indices(self.config.rollout.groups)
            with bounded("while prompts were encoded", SMALLER_ENCODERS), self.ranks.raise_together():
                self.rollout.prepare([prompts[i] for prompts in steps for i in own])

    def judgement_due(self) -> bool:
        """Whether the last finished step is one to evaluate and has not been."""
        step, every = self.progress.step, self.config.trainer.eval_every
        first = not self.progress.base_scores
        due = every and (first or step % every == 0 or step == self.config.trainer.steps)
        return bool(due) and self.progress.evaluated < step

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step: rollout, rewards, advantages, gradients, balance, update."""
        began = time.perf_counter()
        samples, groups = self.roll_out(step)
        rolled = time.perf_counter()
        scores = samples.scores(self.ranks)
        self.scorer.check(scores)
        signal = read_signal(scores.values.nan_to_num(), scores.applicable, groups, self.config.algorithm)
        scored = time.perf_counter()
        metrics: dict[str, Any] = {"step": step, "phase": "train", **describe(self.scorer.names, signal)}
        for k, name in enumerate(self.scorer.names):
            metrics[f"reward/{name}/failed"] = int(scores.failed[k].sum())
        metrics |= self.update(step, samples, signal)
        done = time.perf_counter()
        images = scores.values.shape[1]
        return metrics | {
            "time/rollout": rolled - began,
            "time/reward": scored - rolled,
            "time/train": done - scored,
            "time/step": done - began,
            "throughput/images_per_second": images / (done - began),
        }

    def roll_out(self, step: int) -> tuple[Samples, torch.Tensor]:
        """This rank's samples, and the prompt group [n] of every image of the step."""
        size = self.config.rollout.group_size
        prompts = [prompt for prompt in self.sampler.step(step) for _ in range(size)]
        own = self.ranks.rank_indices(len(prompts))
        self.recorder.stage("rollout", len(own))
        with bounded(f"in the rollout of step {step}", SMALLER_ROLLOUT), self.layout.raise_together():
            samples = self.rollout.collect(
                [prompts[i] for i in own],
                own,
                scorer=self.scorer,
                adapter="behaviour",
                purpose="rollout",
                step=step,
                advance=self.recorder.advance,
            )
        return samples, torch.arange(len(prompts)) // size

    def update(self, step: int, samples: Samples, signal: Signal) -> dict[str, Any]:
        """Gradients, balance, AdamW, moving average, behaviour policy."""
        settings, algorithm = self.config.trainer, self.config.algorithm
        own = torch.tensor(self.ranks.rank_indices(signal.rewards.shape[1]))
        draws = signal.groups[own] if algorithm.training_noise is TrainingNoise.group else own
        times = training_times(
            self.rollout.times(), settings.timestep_fraction, settings.times_per_image, draws.tolist(),
            settings.seed, step, algorithm.training_times,
        )  # fmt: skip
        count = signal.rewards.shape[1] * times.shape[1]
        data = TrainingSet(samples.x0, samples.embeddings, own, draws, times, count)
        self.recorder.stage("train", times.numel())
        with bounded(f"in the training of step {step}", SMALLER_TRAINING):
            direction = self.descent.direct(step, signal, data, self.progress.cache, self.recorder.advance)
        for warning in direction.warnings:
            log.warning("step %d: %s", step, warning)
        metrics: dict[str, Any] = dict(direction.metrics)
        squares = torch.linalg.vector_norm(direction.gradient, dtype=torch.float64).square()
        norm = self.ranks.broadcast(self.layout.total(squares)).sqrt().item()
        if not math.isfinite(norm):
            self.skip(step, samples, data, signal)
            return metrics | {"skipped": 1}
        self.skipped, self.checkpoints.mid_update = 0, True
        metrics["grad_norm"] = norm
        self.apply(direction.gradient * min(1.0, self.config.optimizer.clip_norm / (norm + 1e-6)))
        self.progress.cache = direction.cache
        trained = dict(self.policy.parameters("trained"))
        blend(self.progress.ema, trained, ema_decay(settings.ema, step))  # type: ignore[arg-type]
        eta = behaviour_eta(algorithm.behaviour, step)
        blend(dict(self.policy.parameters("behaviour")), trained, eta)  # type: ignore[arg-type]
        return metrics | {"behaviour/eta": eta}

    def skip(self, step: int, samples: Samples, data: TrainingSet, signal: Signal) -> None:
        """Leave the weights as they are, on all ranks alike, and keep what led to a gradient that is not finite.

        Raises:
            TrainingError: too many steps in a row.
        """
        self.skipped += 1
        try:
            kept = f"Its batch: {keep_batch(self.folder, step, self.ranks.rank, samples, data, signal)}"
        except StorageError as error:  # the other ranks go on, and so does this one
            kept = str(error)
        log.warning("step %d: the gradient is not finite; the weights stay as they are. %s", step, kept)
        if self.skipped > self.config.trainer.max_skipped:
            raise TrainingError(
                f"the gradients of {self.skipped} steps in a row were not finite, more than trainer.max_skipped="
                f"{self.config.trainer.max_skipped} allows. Look at {self.folder / 'skipped'}; a lower optimizer.lr, "
                "model.precision=bf16 instead of fp16, or an earlier checkpoint may help."
            )

    def apply(self, gradient: torch.Tensor) -> None:
        """Take the optimizer's step along a gradient [n], as far as this rank holds it."""
        parameters = list(self.policy.parameters("trained").values())
        parts = gradient.split([local(parameter).numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = as_dtensor(part, parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def evaluate(self) -> bool:
        """Score the moving average on held-out prompts; true if it is the best so far."""
        step = self.progress.step
        self.recorder.stage("evaluate", len(self.ranks.padded_rank_indices(len(self.held_out))))
        with self.policy.swapped(self.progress.ema), bounded("in an evaluation", SMALLER_ROLLOUT):
            evaluation = score_policy(
                self.judged, "trained", self.held_out, self.judges, self.ranks, self.recorder.advance
            )
        first = not self.progress.base_scores
        if first:
            self.progress.base_scores = base_scores(evaluation)
        verdict = judge(
            evaluation, self.progress.base_scores, self.scorer.names, list(self.config.eval_rewards)
        )
        with self.ranks.raise_together():
            self.recorder.record({"step": step, "phase": "eval", **verdict.metrics})
            self.recorder.pictures(step, evaluation)
        self.progress.evaluated = step
        for warning in verdict.warnings:
            log.warning("step %d: %s", step, warning)
        return self.is_best(verdict.metrics, first)

    def is_best(self, metrics: dict[str, Any], first: bool) -> bool:
        """Whether an evaluation beats those before in `trainer.best`; the `first` is what the others have to beat."""
        value = metrics.get(self.config.trainer.best, math.nan)
        if not math.isfinite(value):
            log.warning(
                "step %d: the evaluation has no %s; the best stays",
                self.progress.step,
                self.config.trainer.best,
            )
            return False
        if self.progress.best is not None and value <= self.progress.best:
            return False
        self.progress.best = value
        if not first:
            self.progress.best_step = self.progress.step
        return not first
