"""A run that is stopped and resumed has the metrics and weights of an undisturbed run."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.environment import SMALL, Environment, rows

STEPS = (
    "rollout.groups=2",
    "rollout.group_size=3",
    "trainer.steps=4",
    "trainer.checkpoint_every=2",
    "balance.refresh_every=3",  # at steps 1 and 4
    "trainer.eval_every=3",
    "trainer.eval_prompts=1",
)


@pytest.fixture(scope="module")
def undisturbed(environment: Environment) -> Path:
    folder = environment.folder / "undisturbed"
    done = environment.marble("train", *SMALL, *STEPS, f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def interrupt(environment: Environment, run: Path, after_step: int, number: signal.Signals) -> int:
    """Start a run, send a signal once `after_step` is recorded, and return the exit code."""
    process = environment.start("train", *SMALL, *STEPS, f"run.dir={run}")
    deadline = time.monotonic() + 300
    try:
        while not _reached(run, after_step):
            assert process.poll() is None, "the run ended before it could be interrupted"
            assert time.monotonic() < deadline, "the run did not get to the step"
            time.sleep(0.01)
        process.send_signal(number)
        return process.wait(60)
    finally:
        process.kill()
        process.wait()


def _reached(run: Path, step: int) -> bool:
    return (run / "metrics.jsonl").exists() and max((row["step"] for row in rows(run)), default=0) >= step


def weights(run: Path) -> dict[str, bytes]:
    folder = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    return {
        str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))
    }


def assert_same(run: Path, undisturbed: Path) -> None:
    assert rows(run) == rows(undisturbed)
    assert weights(run) == weights(undisturbed)
    assert len(weights(run)) == 4  # LoRA, moving average, behaviour policy, optimizer


def test_run_that_is_killed_twice_equals_an_undisturbed_one(
    environment: Environment, run: Path, undisturbed: Path
) -> None:
    """Killed before the first checkpoint, and after one and an evaluation, which is repeated."""
    for after_step in (1, 3):
        assert interrupt(environment, run, after_step, signal.SIGKILL) == -signal.SIGKILL
    continued = environment.marble("train", *SMALL, *STEPS, f"run.dir={run}")
    assert continued.returncode == 0, continued.stderr
    assert_same(run, undisturbed)


def test_sigterm_saves_a_checkpoint_and_exits_with_143(
    environment: Environment, run: Path, undisturbed: Path
) -> None:
    assert interrupt(environment, run, 1, signal.SIGTERM) == 143
    latest = (run / "checkpoints" / "latest").read_text().strip()
    assert int(latest.removeprefix("step-")) == max(row["step"] for row in rows(run))
    continued = environment.marble("train", *SMALL, *STEPS, f"run.dir={run}", "--resume", "auto")
    assert continued.returncode == 0, continued.stderr
    assert_same(run, undisturbed)


def test_folder_of_another_config_is_refused_untouched(environment: Environment, undisturbed: Path) -> None:
    before = (undisturbed / "metrics.jsonl").read_bytes()
    refused = environment.marble("train", *SMALL, *STEPS, f"run.dir={undisturbed}", "optimizer.lr=1e-5")
    assert refused.returncode == 2
    assert "another configuration" in refused.stderr
    never = environment.marble("train", *SMALL, *STEPS, f"run.dir={undisturbed}", "--resume", "never")
    assert never.returncode == 2
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_checkpoint_with_a_flipped_byte_is_named_and_skipped(
    environment: Environment, run: Path, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed, run)
    damaged = run / "checkpoints" / "step-00000004"
    file = damaged / "ema" / "pytorch_lora_weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    judged = environment.marble("eval", damaged, "trainer.eval_prompts=1")
    assert judged.returncode == 2
    assert "pytorch_lora_weights.safetensors was altered" in judged.stderr
    continued = environment.marble("train", *SMALL, *STEPS, f"run.dir={run}")
    assert continued.returncode == 0, continued.stderr
    assert "step-00000004 is not usable" in " ".join((continued.stdout + continued.stderr).split())
    assert_same(run, undisturbed)
