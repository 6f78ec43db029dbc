"""The training loop: `Trainer.step` follows docs/explanation/algorithm.md, one optimizer step at a time."""

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from marble_cli.balance.metrics import OF_CACHE
from marble_cli.config.aspects import by_aspect
from marble_cli.config.enums import DeadGroups
from marble_cli.config.schema import RunConfig
from marble_cli.data.prompts import Prompt
from marble_cli.data.schedule import PromptSampler
from marble_cli.distributed.layout import Layout
from marble_cli.distributed.ranks import Ranks
from marble_cli.distributed.shards import as_dtensor, local
from marble_cli.errors import HackingError, StorageError, TrainingError
from marble_cli.evaluate.score import Evaluation
from marble_cli.interrupts import Interrupt
from marble_cli.plan.checks import check_rewards
from marble_cli.plan.groups import images_together
from marble_cli.policy.base import Policy
from marble_cli.policy.trainable.ema import behaviour_eta, blend, ema_decay
from marble_cli.rewards.scorer import Scorer
from marble_cli.rollout.collect import Rollout
from marble_cli.run.balance_state import copy_balance_state
from marble_cli.run.checkpoints import Checkpoints
from marble_cli.run.drawing import SMALLER_ENCODERS, SMALLER_ROLLOUT, Drawing, share_images
from marble_cli.run.drawn import Drawn
from marble_cli.run.evaluations import Evaluations
from marble_cli.run.gate import Gate
from marble_cli.run.inspection import keep_batch
from marble_cli.run.learning_rate import learning_rate
from marble_cli.run.shortage import bounded
from marble_cli.run.signal_watch import SignalWatch
from marble_cli.run.state import Progress
from marble_cli.step.batches import TrainingSet
from marble_cli.step.direction import Descent, Direction
from marble_cli.step.reward_signal import Signal, describe_signal, read_signal
from marble_cli.step.selection import choose_images

log = logging.getLogger("marble.run")

# Remedies when the device runs out of memory, per phase.
SMALLER_TRIAL = "Free the device, or have rewards compute elsewhere (rewards.<name>.device=cpu or .url)"
SMALLER_TRAINING = "Lower trainer.micro_batch_size or set model.gradient_checkpointing=true"


class Recorder(Protocol):
    """Record metrics, pictures and progress; every rank has a recorder, but only the main rank's writes."""

    def stage(self, name: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...
    def message(self, text: str) -> None: ...
    def record(self, metrics: dict[str, Any]) -> None: ...
    def pictures(self, step: int, evaluation: Evaluation, *, first: bool) -> None: ...


@dataclass
class Trainer:
    """Train from step `progress.step` to step `config.trainer.steps`; `run.build.build_trainer` makes one.

    Attributes:
        config: the configuration of the run.
        folder: the run's folder.
        policy: the trained, behaviour and frozen policies.
        optimizer: AdamW over the trained parameters.
        scorer: scores the trained rewards, and with `gate` the watched ones.
        gate: of the KL term; None if it acts on all images.
        sampler: draws the prompts of each step.
        rollout: makes the images of a step.
        evaluations: scores the moving average on held-out prompts.
        descent: turns the reward signal of a step into its update direction.
        layout: how ranks hold parameters.
        recorder: records metrics and pictures.
        together: neighbouring images that stay on one rank.
        progress: the state after the last finished step.
        prompts_ready_until: the last step whose prompts are encoded.
        skipped: the number of consecutive steps without a finite gradient.
    """

    config: RunConfig
    folder: Path
    policy: Policy
    optimizer: torch.optim.Optimizer
    scorer: Scorer
    gate: Gate | None
    sampler: PromptSampler
    rollout: Rollout
    evaluations: Evaluations
    descent: Descent
    layout: Layout
    recorder: Recorder
    progress: Progress
    prompts_ready_until: int = 0
    skipped: int = 0
    warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        rewards = [worker.reward.declaration for worker in self.scorer.workers]
        self.together = images_together(self.config.rollout, rewards)
        self.names = list(by_aspect(self.config.rewards))
        self.drawing = Drawing(
            self.sampler, self.rollout, self.scorer, self.names, self.layout, self.recorder, self.together
        )
        self.watch = SignalWatch.over(self.policy.dtype)
        self.checkpoints = Checkpoints(
            self.folder, self.config.trainer, self.policy, self.optimizer, self.layout, self.progress
        )

    @property
    def ranks(self) -> Ranks:
        return self.layout.ranks

    def run(self, interrupt: Interrupt) -> int:
        """Train to the last step, and write a checkpoint even if the run fails; return the exit code.

        Raises:
            RewardError: a reward failed too often; a checkpoint of the last finished step is written first.
            StorageError: a checkpoint or the metrics do not fit on the disk; earlier checkpoints are intact.
            HackingError, RollBack: the alarm of `trainer.on_hacking`; `run.rollback` says when.
        """
        with self.checkpoints.salvage():
            self.check_rewards()
            return self.train(interrupt)

    def check_rewards(self) -> None:
        """Try every reward on two images of every prompt source, before the first step."""
        with self.ranks.raise_together(), bounded("when the rewards were first tried", SMALLER_TRIAL):
            check_rewards(self.rollout, self.evaluations.evaluator.scorer, self.sampler.sources)

    def train(self, interrupt: Interrupt) -> int:
        """Run the remaining steps with their evaluations and checkpoints; return the exit code."""
        settings = self.config.trainer
        if settings.eval_every:
            with bounded("while prompts were encoded", SMALLER_ENCODERS), self.ranks.raise_together():
                self.evaluations.evaluator.encode_prompts()
        if self.evaluations.are_due():
            self.make_good()
        while self.progress.step < settings.steps:
            self.checkpoints.check()
            step = self.progress.step + 1
            self.encode_prompts(step)
            metrics = self.step(step)
            for warning in self.watch.see(metrics):
                log.warning("step %d: %s", step, warning)
            with self.ranks.raise_together():
                self.recorder.record(metrics)
            self.progress.balance = copy_balance_state(self.descent.balance)
            self.progress.step, self.checkpoints.mid_update = step, False
            best = self.evaluate() if self.evaluations.are_due() else False
            stop = self.ranks.any(interrupt.exit_code is not None)
            if stop or best or step == settings.steps or step % settings.checkpoint_every == 0:
                self.checkpoints.save(best)
            if stop:
                self.checkpoints.wait()
                self.recorder.message(f"stopped by a signal after step {step}; a checkpoint is written")
                return interrupt.exit_code or 143
        if not self.checkpoints.up_to_date:
            self.checkpoints.save(False)
        self.checkpoints.wait()
        return 0

    def make_good(self) -> None:
        """Evaluate the step that the run resumes after, and note in its checkpoint that this is done."""
        try:
            best = self.evaluate()
        except HackingError:
            self.checkpoints.note(best=False)  # resumed once more, the run trains on
            raise
        self.checkpoints.note(best)

    def step(self, step: int) -> dict[str, Any]:
        """Compute one optimizer step: rollout, scores, signal, direction, update. Return its metrics."""
        began = time.perf_counter()
        drawn, trainer, dead = self.drawing.draw(step), self.config.trainer, self.config.rollout.dead_groups
        scores = drawn.scores.only(self.names)
        signal = read_signal(scores.values, scores.applicable, drawn.groups, self.config.algorithm)
        scored = time.perf_counter()

        metrics: dict[str, Any] = {"step": step, "phase": "train"}
        metrics |= describe_signal(self.names, signal)
        failed = dict(zip(drawn.scores.names, drawn.failed.tolist(), strict=True))
        metrics |= {f"reward/{name}/failed": failed[name] for name in self.names}
        if dead is DeadGroups.redraw:
            metrics["signal/redrawn_groups"] = drawn.redrawn
        weights = choose_images(signal, dead, trainer.select.fraction, trainer.seed, step, self.ranks)
        if self.gate is not None:
            weights, gated = self.gate.weigh(weights, drawn.scores, drawn.groups)
            metrics |= gated
        trained = torch.ones_like(drawn.groups, dtype=torch.bool) if weights is None else weights.trained
        metrics["signal/trained_images"] = int(trained.sum())
        if not trained.all() or drawn.redrawn:  # else all images are trained on, and none is copied
            drawn = drawn.only(trained, self.ranks.rank)
        data = drawn.training_set(self.config, step, self.rollout, weights, self.ranks.rank)
        direction = self.find_direction(step, signal, data)
        metrics |= direction.metrics
        norm = self.norm(direction.gradient)
        if math.isfinite(norm):
            metrics |= {"grad_norm": norm, "behaviour/eta": self.update(step, direction, norm)}
        else:
            self.skip(step, drawn, data, signal)
            metrics = {key: value for key, value in metrics.items() if not key.startswith(OF_CACHE)}
            metrics["skipped"] = 1
        if self.progress.rollbacks:
            metrics["alarm/rollbacks"] = self.progress.rollbacks
        done = time.perf_counter()

        return metrics | {
            "optimizer/learning_rate": self.learning_rate(step),
            "loss/kl_coef": self.descent.kl_coefficient(step),
            "time/rollout": drawn.drawing,
            "time/reward": drawn.waiting,
            "time/train": done - scored,
            "time/step": done - began,
            "throughput/images_per_second": scores.values.shape[1] / (done - began),
        }

    def find_direction(self, step: int, signal: Signal, data: TrainingSet) -> Direction:
        """Find the update direction: coefficients, gradients, Gram matrix, balance, combined gradient."""
        self.recorder.stage("train", data.times.numel())
        with bounded(f"in the training of step {step}", SMALLER_TRAINING):
            direction = self.descent.direct(step, signal, data, self.progress.cache, self.recorder.advance)
        for warning in direction.warnings:
            if warning not in self.warned:
                self.warned.add(warning)
                log.warning("step %d: %s", step, warning)
        return direction

    def norm(self, gradient: torch.Tensor) -> float:
        """Return the norm of a gradient [n] over the shards of all ranks; the same on every rank."""
        squares = torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
        return self.ranks.broadcast(self.layout.sum_over_shards(squares)).sqrt().item()

    def update(self, step: int, direction: Direction, norm: float) -> float:
        """Clip, take AdamW's step, update the moving average and the behaviour policy; return its eta."""
        settings, algorithm = self.config.trainer, self.config.algorithm
        self.skipped, self.checkpoints.mid_update = 0, True
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.apply(direction.gradient * min(1.0, self.config.optimizer.clip_norm / (norm + 1e-6)))
        self.progress.cache = direction.cache
        trained = dict(self.policy.parameters("trained"))
        blend(self.progress.ema, trained, ema_decay(settings.ema, step))
        eta = behaviour_eta(algorithm.behaviour, step)
        blend(self.policy.parameters("behaviour"), trained, eta)
        return eta

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of `step`, which counts skipped steps too."""
        return learning_rate(self.config.optimizer, step, self.config.trainer.steps)

    def apply(self, gradient: torch.Tensor) -> None:
        """Take the optimizer's step along this rank's part [n] of a gradient."""
        parameters = list(self.policy.parameters("trained").values())
        parts = gradient.split([local(parameter).numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = as_dtensor(part, parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def skip(self, step: int, drawn: Drawn, data: TrainingSet, signal: Signal) -> None:
        """Leave the weights unchanged on all ranks, and keep the batch whose gradient is not finite.

        Raises:
            TrainingError: too many consecutive steps were skipped.
        """
        self.skipped += 1
        try:
            kept = f"Its batch: {keep_batch(self.folder, step, self.ranks.rank, drawn.samples, data, signal)}"
        except StorageError as error:  # other ranks do not see this error, so this rank continues with them
            kept = str(error)
        log.warning("step %d: the gradient is not finite; the weights stay as they are. %s", step, kept)
        if self.skipped > self.config.trainer.max_skipped:
            raise TrainingError(
                f"the gradients of {self.skipped} steps in a row were not finite, more than "
                f"trainer.max_skipped={self.config.trainer.max_skipped} allows. Look at "
                f"{self.folder / 'skipped'}; a lower optimizer.lr, model.precision=bf16 instead of fp16, or "
                "an earlier checkpoint may help."
            )

    def encode_prompts(self, step: int) -> None:
        """Encode this rank's prompts of `trainer.encode_ahead` steps from `step` on, if not done yet."""
        settings = self.config.trainer
        if step <= self.prompts_ready_until:
            return
        self.prompts_ready_until = min(settings.steps, step + settings.encode_ahead - 1)
        steps = [self.sampler.step(ahead) for ahead in range(step, self.prompts_ready_until + 1)]
        size, own = self.config.rollout.group_size, list[Prompt]()
        with bounded("while prompts were encoded", SMALLER_ENCODERS), self.ranks.raise_together():
            for prompts in steps:
                images = share_images(self.rollout, prompts, self.ranks.world, self.together)
                groups = {i // size for i in images.own(self.ranks.rank)}
                own += [prompts[i] for i in sorted(groups)]
            self.rollout.prepare(own)

    def evaluate(self) -> bool:
        """Score the moving average on held-out prompts; tell whether it is the best so far."""
        step, first = self.progress.step, not self.progress.base_scores
        self.recorder.stage("evaluate", self.evaluations.evaluator.own_images)
        with bounded("in an evaluation", SMALLER_ROLLOUT):
            evaluation, verdict = self.evaluations.score(self.recorder.advance)
        with self.ranks.raise_together():
            start = {"eval/start": 1} if first else {}
            self.recorder.record({"step": step, "phase": "eval", **start, **verdict.metrics})
            self.recorder.pictures(step, evaluation, first=first)
        return self.evaluations.finish(evaluation, verdict)
