"""The benchmarks at their smallest size: both sides compute the same, and their figures are right."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from marble_cli.config.compose import compose
from marble_cli.policy.trainable.blocks import compile_blocks, repeated_blocks
from scripts.bench import __main__ as bench
from scripts.bench import parallel, parts, report, roofline, scenes, sd35m, solvers, steps, timing, whole_step
from scripts.bench import run as whole
from tests.policy.trainable.compiler import WITHOUT_COMPILER_WARNINGS
from tests.scripts.smallest import FEWER, SMALL, run_in_process

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scene() -> scenes.Scene:
    """Two blocks of width 64 over four tokens."""
    return scenes.random_scene(layers=2, heads=1, side=4, images=8, text_tokens=3)


def test_rewards_leave_out_some_images_and_keep_the_others(scene: scenes.Scene) -> None:
    shares = scene.signal.applicable.double().mean(1)
    assert shares.min() >= 0.375
    assert shares.max() <= 0.75
    assert scene.rewards(3).optimality.equal(scene.signal.optimality[:3])


@pytest.mark.parametrize("rewards", [2, 5])
def test_the_published_refresh_and_ours_have_one_direction(scene: scenes.Scene, rewards: int) -> None:
    assert steps.check_agreement(scene, rewards) > 0.999999
    own = steps.published_refresh(scene, rewards)
    assert own.rows.shape == (rewards, scene.parameters())
    assert own.direction.isfinite().all()


def test_a_disagreement_is_not_timed(scene: scenes.Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    real = steps.published_refresh

    def wrong(*arguments: object) -> steps.PublishedRefresh:
        found = real(*arguments)  # type: ignore[arg-type]
        return steps.PublishedRefresh(found.rows, found.direction + found.rows.abs().mean())

    monkeypatch.setattr(steps, "published_refresh", wrong)
    with pytest.raises(AssertionError, match="cosine"):
        steps.time_steps(scene, 1)


def test_plain_and_amortised_steps_take_one_backward_pass(scene: scenes.Scene) -> None:
    """Three forward passes and a backward pass of the same cost in products; a refresh takes one more."""
    jobs = {
        "plain": steps.step_job(scene, 1, plain=True),
        "amortised": steps.step_job(scene, 5),
        "outside": steps.step_job(scene, 5, refresh=True, outside=True),
        "inside": steps.step_job(scene, 5, refresh=True),
    }
    flop = {name: sd35m.count_flops(job) for name, job in jobs.items()}
    assert flop["plain"] == pytest.approx(flop["amortised"], rel=1e-4)
    assert 1.1 * flop["plain"] < flop["outside"] < flop["inside"]


def test_a_refresh_holds_one_vector_a_reward(scene: scenes.Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "REFRESHED_REWARDS", (5, 8))
    rows = {row[:2]: row for row in steps.measure_memory(scene).rows}
    vector = 4 * scene.parameters() / 1e6
    one, other = (rows["refresh, shared term inside", k][2] for k in (5.0, 8.0))
    # Three more rows of float32, and of float64 in the Gram matrix; little else is alive in so small a model.
    assert 3 * vector < other - one < 10 * vector  # type: ignore[operator]


def test_the_peak_is_that_of_tensors_alive_at_once() -> None:
    size = 1 << 20

    def one_after_the_other() -> None:
        for _ in range(5):
            torch.ones(size)

    def together() -> list[torch.Tensor]:
        return [torch.ones(size) for _ in range(5)]

    one_after_the_other()
    assert timing.peak_bytes(together, CPU) == pytest.approx(5 * 4 * size, rel=0.01)
    assert timing.peak_bytes(one_after_the_other, CPU) < 3 * 4 * size


def test_jobs_take_turns_and_the_first_round_does_not_count() -> None:
    turns: list[str] = []
    seconds = timing.alternate({name: lambda name=name: turns.append(name) for name in "ab"}, 3)  # type: ignore[misc]
    assert "".join(turns) == "abababab"
    assert [len(times) for times in seconds.values()] == [3, 3]
    assert timing.ratio([2.0, 30.0, 4.0], [1.0, 10.0, 2.0]) == 2.0


def test_a_run_is_put_together_from_its_steps() -> None:
    trained = dict(zip([*whole.STEPS, whole.SINGLE], [1.0, 1.0, 2.0, 1.1, 1.5, 1.0], strict=True))
    times = {
        name: [{"time/rollout": 0.75, "time/reward": 0.25, "time/train": seconds}] * 2
        for name, seconds in trained.items()
    }
    times[whole.SINGLE] = [step | {"time/reward": 0.05} for step in times[whole.SINGLE]]
    speeds = {row[0]: row[4:] for row in whole.run_sheet(times, 4).rows}
    assert speeds["plain"] == speeds["amortised"] == (None, None)
    assert speeds["refresh"] == pytest.approx((20 / 21, 18 / 21))
    assert speeds["refresh on a quarter"] == pytest.approx((20 / 20.1, 18 / 20.1))


def test_the_real_trainer_is_timed() -> None:
    rows = whole.time_run(1, (*SMALL, *FEWER, "balance.floor=0")).rows
    assert [row[0] for row in rows] == [*whole.STEPS, whole.SINGLE]
    assert all(number > 0 for row in rows for number in row[1:4])  # type: ignore[operator]


@pytest.mark.parametrize("size", [2, 5, 16])
def test_solvers_are_judged_by_the_gap(size: int) -> None:
    gram = solvers.random_gram(size, 0)
    assert np.linalg.eigvalsh(gram).min() > -1e-12
    assert (gram.diagonal() == 1).all()
    corner = np.eye(size)[0]
    assert solvers.gap(gram, corner) == pytest.approx(1 - gram[0].min())
    best = solvers.marble()(gram)
    assert solvers.gap(gram, best) < 1e-10
    assert 0 <= solvers.gap(gram, solvers.slsqp(gram)) < 1e-2
    assert 0.5 * best @ gram @ best <= 0.5 * corner @ gram @ corner


def test_every_installed_solver_is_compared() -> None:
    rows = solvers.compare_solvers((4,), 2).rows
    assert [row[0] for row in rows] == list(solvers.all_solvers())
    assert all(worst is None or worst < 0.1 for *_, worst in rows)  # type: ignore[operator]
    assert {row[0]: row[3] for row in rows}["OSQP at 1e-9, polished"] < 1e-8  # type: ignore[operator]


def test_tables_reach_the_terminal_the_page_and_the_json_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of step and solver is timed; `memory` and `run` have tests of their own."""
    scene = partial(scenes.random_scene, 2, 1, 4, 8, text_tokens=3)
    monkeypatch.setattr(bench, "quick_plan", lambda: bench.Plan(1, (scene,), (), sizes=(3,), problems=1))
    page, data = tmp_path / "bench.md", tmp_path / "bench.json"
    options = ["--quick", "--parts", "steps", "solvers", "--json", str(data), "--output", str(page)]
    bench.main(options)
    shown = capsys.readouterr().out
    assert "marble: LeastNorm" in shown
    assert max(map(len, shown.splitlines())) <= report.WIDTH
    written = page.read_text()
    assert report.describe_machine()["torch"] in written
    assert f"`python -m scripts.bench {' '.join(options)}`" in written
    assert written.count("\n| marble: LeastNorm | 3 | ") == 1
    for section in written.split("\n## ")[1:]:
        assert len({line.count("|") for line in section.splitlines() if line.startswith("|")}) == 1
    of_steps, of_solvers = json.loads(data.read_text())["tables"]
    timed = [[*row.values()] for row in of_steps["rows"]]
    assert [row[:2] for row in timed[:2]] == [["plain", 1.0], ["amortised", 5.0]]
    assert len(timed) == 2 + 3 * len(steps.REFRESHED_REWARDS)
    assert timed[0][3] == 1.0
    assert all(row[2] > 0 and row[3] > 0 for row in timed)
    assert of_solvers["rows"][0]["worst gap"] < 1e-10


def test_parallel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands = run_in_process(monkeypatch, parallel)
    for layout in parallel.LAYOUTS.values():
        more = [f"launcher.nproc={layout[1]}", *layout[2:]] if layout else []
        compose([*parallel.SETTINGS, *more])
    monkeypatch.setattr(parallel, "LAYOUTS", {"1 process": ()})
    parallel.main(["--rounds", "1", "--steps", "2", *SMALL, *FEWER])
    assert len(commands) == 1
    row = r"\| 1 process \| [\d.]+ \| 1\.00 x \| 1\.00 x \| 1\.00 x \|"
    assert re.search(row, capsys.readouterr().out)


def test_sd35m(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, page = tmp_path / "bench.json", tmp_path / "bench.md"
    options = ["--small", "--repeats", "1", "--json", str(figures), "--output", str(page)]
    sd35m.main([*options, "rollout.steps=1"])
    tables = json.loads(figures.read_text())["tables"]
    measured, whole = (table["rows"] for table in tables)
    assert [(row["what"], row["whose"]) for row in measured] == [
        (part, whose)
        for part in whole_step.PARTS
        for whose in (("ours",) if part == whole_step.WITHOUT_KL else ("recipe", "ours"))
    ]
    operations = {row["what"]: row["TFLOP"] for row in measured if row["whose"] == "ours"}
    assert operations[whole_step.WITHOUT_KL] < operations["training"] < operations["refresh"]
    changes = [whole_step.WITH_FRACTION, whole_step.WITH_KL_EVERY]
    assert [row["whose"] for row in whole] == ["recipe", "ours", *changes]
    said = capsys.readouterr().out
    assert "directions of ours and of the recipe" in said
    assert all(f"s] {part}: " in said for part in whole_step.PARTS)
    assert "## The whole step" in page.read_text()


def test_the_whole_step_adds_up_its_parts() -> None:
    """1,152 images in micro-batches of 9 are 128 rollouts and 3,072 passes; a tenth of the steps refresh."""
    seconds = {
        ("rollout", "recipe"): 24.0,
        ("training", "recipe"): 2.0,
        ("refresh", "recipe"): 12.0,
        ("rollout", "ours"): 24.0,
        ("training", "ours"): 2.0,
        (whole_step.WITHOUT_KL, "ours"): 1.5,
        ("refresh", "ours"): 3.0,
        ("rollout", "ours, compiled"): 12.0,
        ("training", "ours, compiled"): 1.0,
        (whole_step.WITHOUT_KL, "ours, compiled"): 0.8,
        ("refresh", "ours, compiled"): 3.0,
    }
    forecast = {key: second / 2 for key, second in seconds.items()}
    rows = whole_step.whole_step(sd35m.step_config(small=False), 9, seconds, forecast).rows
    per_pass = [
        ("recipe", (1, 2, 1 / 3072)),
        ("ours", (1, 2, 0.1)),
        ("+ fraction 0.25", (1, 2, 0.025)),
        ("+ kl_every 4", (1, 2 - 0.75 * 0.5, 0.025)),
        ("ours, compiled", (0.5, 1, 0.2)),
        ("+ fraction 0.25", (0.5, 1, 0.05)),
        ("+ kl_every 4", (0.5, 1 - 0.75 * 0.2, 0.05)),
    ]
    recipe = sum(per_pass[0][1])
    for row, (whose, seconds_per_pass) in zip(rows, per_pass, strict=True):
        spent = sum(seconds_per_pass)
        shares = [part / spent for part in seconds_per_pass]
        assert row[0] == whose
        expected = [1152 / (3072 * spent), recipe / spent, 3072 * spent / 8, *shares]
        assert row[1:] == pytest.approx([*expected, 2 * expected[0], expected[1]]), whose


def seconds_of(job: timing.Job) -> float:
    return roofline.forecast(job, torch.device("cpu"))


def test_a_kernel_takes_as_long_as_its_products_its_bytes_or_its_launch() -> None:
    half = torch.zeros(2048, 1024, dtype=torch.bfloat16)
    assert seconds_of(lambda: half @ half.T) == pytest.approx(2 * 2048 * 2048 * 1024 / 600e12)
    single = half[:512].float()
    assert seconds_of(lambda: single @ single.T) == pytest.approx(2 * 512 * 512 * 1024 / 45e12)
    assert seconds_of(lambda: half + half) == pytest.approx(3 * 2048 * 1024 * 2 / 2.7e12)
    assert seconds_of(lambda: half[:8, :8] * 2) == pytest.approx(2.2e-6)


def test_a_forecast_leaves_out_what_moves_nothing() -> None:
    large, line, written = torch.zeros(2048, 2048), torch.zeros(2048), torch.zeros(2048, 2048)
    assert seconds_of(lambda: large.reshape(64, 64, 1024).transpose(0, 1)[3]) == 0
    assert seconds_of(lambda: torch.empty_like(large)) == 0
    assert roofline.forecast(lambda: large + 1, torch.device("cuda")) == 0  # is on another device
    assert seconds_of(lambda: large + line.expand(2048, 2048)) == pytest.approx(
        4 * (2 * 2048 * 2048 + 2048) / 2.7e12
    )
    assert seconds_of(lambda: written.copy_(large)) == pytest.approx(8 * 2048 * 2048 / 2.7e12)


def test_a_forecast_knows_attention_and_its_backward_pass() -> None:
    q = torch.zeros(1, 8, 2048, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
    product = 2 * 8 * 2048 * 2048 * 64
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    out = flash(q, q, q)[0].sum()
    with torch.no_grad():
        forward = roofline.forecast(lambda: flash(q, q, q), q.device)
    assert forward == pytest.approx(2 * product / 380e12)
    # Its four products, and one of the forward pass anew.
    assert roofline.forecast(out.backward, q.device) == pytest.approx(5 * product / 280e12, rel=0.1)


@WITHOUT_COMPILER_WARNINGS
def test_a_job_runs_as_if_blocks_had_never_been_compiled(scene: scenes.Scene) -> None:
    policy = scene.policy
    compile_blocks(policy.network)
    try:
        assert policy.compiled
        assert sd35m.eagerly(policy, lambda: policy.compiled)() is False
        assert policy.compiled
    finally:
        for block in repeated_blocks(policy.network):
            block._compiled_call_impl = None


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_cards_of_one_name_have_their_own_peaks(
    monkeypatch: pytest.MonkeyPatch, gpu: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpu)
    assert parts.peak_speed() == peak
