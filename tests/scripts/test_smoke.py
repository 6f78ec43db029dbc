"""Every script that a person runs, from its `main` to its last line, at the smallest size and in this process."""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import bench
import bench_parallel
import bench_sd35m
import demo
import faults
import gradient_agreement
import pretrain_tiny
import study
import study_report

from marble_cli.cli.app import app
from marble_cli.config.compose import compose

ROOT = Path(faults.ROOT)
REWARDS = ("colorfulness", "compressibility")
SMALL = (
    "rewards=[colorfulness,compressibility]", "rollout.groups=2", "rollout.group_size=2", "rollout.steps=2",
    "rollout.batch_size=4", "trainer.micro_batch_size=4", "trainer.times_per_image=1", "trainer.eval_prompts=2",
)  # fmt: skip
BRIEF = ("trainer.steps=2", "trainer.eval_every=0", "logging.wandb.mode=disabled")


def scripts() -> set[str]:
    """Names of the scripts that can be run."""
    return {
        file.stem for file in (ROOT / "scripts").glob("*.py") if '__name__ == "__main__"' in file.read_text()
    }


def test_every_script_is_run_here() -> None:
    here = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    here |= {file.stem.removeprefix("test_") for file in Path(__file__).parent.glob("test_*.py")}
    assert scripts() - here == set()


def test_every_part_of_a_script_is_imported_by_one() -> None:
    texts = {file.stem: file.read_text() for file in (ROOT / "scripts").glob("*.py")}
    for part in texts.keys() - scripts():
        pattern = re.compile(rf"^(?:import|from) {part}\b", re.MULTILINE)
        assert [name for name in texts if pattern.search(texts[name])], part


def in_process(patch: pytest.MonkeyPatch, script: Any) -> list[list[str]]:
    """Let `script` run its commands of `marble` in this process; returns them as they come."""
    commands: list[list[str]] = []

    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "marble_cli"]
        commands.append(command[3:])
        code = app(command[3:], standalone_mode=False) or 0
        assert not (code and how.get("check")), command
        return subprocess.CompletedProcess(command, code)

    patch.setattr(script, "subprocess", SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL))
    return commands


def test_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without `memory` and `run`, which have tests of their own."""
    plan = bench.Plan(
        1, (partial(bench.random_scene, 2, 1, 4, 8, text_tokens=3),), (), sizes=(3,), problems=1
    )
    bench.main(plan, ["steps", "solvers"], tmp_path / "bench.md", tmp_path / "bench.json")
    tables = json.loads((tmp_path / "bench.json").read_text())["tables"]
    assert len(tables) == 2
    assert all(table["rows"] for table in tables)
    assert "marble: LeastNorm" in capsys.readouterr().out


def test_bench_parallel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands = in_process(monkeypatch, bench_parallel)
    for layout in bench_parallel.LAYOUTS.values():
        more = [f"launcher.nproc={layout[1]}", *layout[2:]] if layout else []
        compose([*bench_parallel.SETTINGS, *more])
    monkeypatch.setattr(bench_parallel, "LAYOUTS", {"1 process": ()})
    monkeypatch.setattr(sys, "argv", ["bench_parallel.py", "--rounds", "1", "--steps", "2", *SMALL])
    bench_parallel.main()
    assert len(commands) == 1
    assert re.search(r"\| 1 process \| [\d.]+ \| 1\.00 x \| 1\.00 x \| 1\.00 x \|", capsys.readouterr().out)


def test_bench_sd35m(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, page = tmp_path / "bench.json", tmp_path / "bench.md"
    bench_sd35m.main(argparse.Namespace(small=True, compile=False, repeats=1, json=figures, output=page))
    parts, whole = json.loads(figures.read_text())["tables"]
    assert (
        {row["whose"] for row in parts["rows"]}
        == {row["whose"] for row in whole["rows"]}
        == {"ours", "recipe"}
    )
    assert "directions of ours and of the recipe" in capsys.readouterr().out
    assert "## The whole step" in page.read_text()


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = in_process(monkeypatch, demo)
    monkeypatch.setattr(demo, "JUDGED_PROMPTS", 2)
    assert demo.main(tmp_path / "run", 0, [*SMALL, *BRIEF]) == 0
    assert [command[0] for command in commands] == ["train", "eval"]
    for picture in ("images.png", "curves.png"):
        assert (tmp_path / "run" / picture).stat().st_size > 1000


def test_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, page = tmp_path / "records.jsonl", tmp_path / "page.md"
    row = {
        "fault": "SIGKILL",
        "times": 2,
        "lost": 3,
        "outcome": "identical",
        "short": "a.py",
        "date": "2026-01-02",
        "seconds": 60,
    }
    records.write_text(json.dumps(row) + "\n")
    page.write_text(f"before\n{faults.BEGIN}\n{faults.END}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["faults.py", "--records", str(records), "--output", str(page)])
    assert faults.main() == 0
    assert "| SIGKILL | 2 | 3 | identical | `tests/a.py` |" in page.read_text()
    assert "Measured on 2026-01-02" in page.read_text()


def test_gradient_agreement(capsys: pytest.CaptureFixture[str]) -> None:
    gradient_agreement.main(2, [*SMALL])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["training", "times", *REWARDS]
    assert len(lines) == 3  # as configured, and the only time before the last
    values = [float(word) for line in lines[1:] for word in line.split()[-2:]]
    assert all(-1 <= value <= 1 for value in values)


def test_steps_that_agree_and_steps_that_do_not() -> None:
    one, other = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([-2.0, 1.0, 0.0])
    steps = torch.stack([torch.stack([one, one]), torch.stack([3 * one, other])])  # [S=2, K=2, P=3]
    assert gradient_agreement.agreement(steps).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_pretrain_tiny(tmp_path: Path) -> None:
    plan = pretrain_tiny.Plan(
        images=12, clip_steps=1, clip_batch=4, vae_crop_steps=1, vae_steps=1, vae_batch=2, flow_steps=1,
        flow_batch=4, prompts_train=3, prompts_test=2,
    )  # fmt: skip
    pretrain_tiny.main(tmp_path, 0, plan)
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "pipeline", text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    assert pipeline.transformer.config.sample_size == 8
    assert (tmp_path / "clip" / "model.safetensors").is_file()
    assert len((tmp_path / "prompts" / "text" / "train.jsonl").read_text().splitlines()) == 3


def test_a_plan_is_scaled() -> None:
    small = pretrain_tiny.Plan().scaled(0.01)
    assert (small.images, small.clip_steps, small.flow_steps, small.vae_batch) == (360, 4, 25, 48)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study of two rewards: its three smallest cells, of two steps and two held-out prompts a source."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        names = (study.BASE, "marble_amortised", study.WEIGHTED)
        for script in (study, study_report):
            patch.setattr(script, "REWARDS", REWARDS)
            patch.setattr(script, "CELLS", {name: (SMALL[0], *study.METHODS[name]) for name in names})
        patch.setattr(study, "BUDGET", ("preset=tiny", *BRIEF, *SMALL))
        patch.setattr(study_report, "RESAMPLES", 20)
        in_process(patch, study)
        for name in names:
            study.run_cell(folder, name, 0)
        yield folder


def test_study(cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study.main(cells, [0], 1, list(study.CELLS))
    assert "0 cells to do, 3 done" in capsys.readouterr().out
    for name in study.CELLS:
        scores = json.loads((cells / f"{name}-0" / "scores.json").read_text())
        assert {reward: len(scores[reward]) for reward in scores} == dict.fromkeys(REWARDS, 6)
    weighted = study.unit_weights(cells / f"{study.BASE}-0" / "scores.json")
    assert [weight.split("=")[0] for weight in weighted] == [f"rewards.{name}.weight" for name in REWARDS]


def test_study_report(cells: Path, tmp_path: Path) -> None:
    study_report.main(cells, tmp_path)
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["cells"].keys() == {"marble_amortised", study.WEIGHTED}
    assert report["cells"]["marble_amortised"]["seeds"] == 1
    assert "2 of 6 runs" in (tmp_path / "results.md").read_text()
    assert all((tmp_path / picture).stat().st_size > 1000 for picture in ("gains.png", "balance.png"))
