"""A run beside a reward with bad manners is the run beside one with good manners, in one folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from marble_cli.config.schema import RunConfig
from marble_cli.run.train import train

Write = Callable[..., str]

RUDE = {
    "imported": """
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
torch.use_deterministic_algorithms(True)
torch.manual_seed(3)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.chdir("/")
print("hello")
""",
    "built": """
torch.set_default_device("meta")
torch.inference_mode().__enter__()
torch.set_num_threads(3)
warnings.simplefilter("error")
os.chdir("/")
""",
}


def figures(folder: Path) -> list[dict[str, Any]]:
    """What was measured, without times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            key: value
            for key, value in row.items()
            if not key.startswith(("time/", "throughput/", "balance/solve_seconds"))
        }
        for row in rows
    ]


@pytest.fixture
def run(
    run_config: Callable[..., RunConfig], write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Path]:
    """A function that trains with the plugin of these statements, in a folder of the name that is given."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, code: int = 0, **statements: str) -> Path:
        plugin = write(**statements)
        reward = f"+rewards.mine={{plugin: {plugin}, timeout: 60, retries: 0}}"
        config = run_config(
            reward,
            f"run.dir={name}",
            "run.name=one",
            "trainer.checkpoint_every=1",
            "logging.images_every=1",
            "trainer.eval_every=1",
        )
        assert train(config, resume="never") == code
        return tmp_path / name

    return make


def test_a_rude_reward_changes_nothing_of_the_run(run: Callable[..., Path], tmp_path: Path) -> None:
    polite, rude = run("polite"), run("rude", **RUDE)
    assert figures(rude) == figures(polite)
    weights = "checkpoints/step-00000002/lora/pytorch_lora_weights.safetensors"
    assert (rude / weights).read_bytes() == (polite / weights).read_bytes()
    assert torch.get_default_dtype() is torch.float32
    assert Path.cwd() == tmp_path


def test_a_run_whose_reward_goes_elsewhere_stays_in_one_folder(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    go = f"os.chdir({str(elsewhere)!r})"
    folder = run("here", built=go, called=f"{go}\ntime.sleep(0.05)")
    assert not list(elsewhere.iterdir())
    written = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "log.txt",
        "checkpoints/latest",
        "samples/step-00000002.png",
    } <= written


def test_a_stop_is_heard_though_a_reward_handles_signals(run: Callable[..., Path]) -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    folder = run("stopped", 143, imported=ignore, built=ignore, called="os.kill(os.getpid(), signal.SIGTERM)")
    assert (folder / "checkpoints" / "latest").read_text().strip() == "step-00000001"
