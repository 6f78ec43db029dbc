"""What a reward leaves behind changed, when it is imported, built or called, is put back, and told once."""

import gc
import locale
import logging
import os
import random
import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from marble_cli.config.schema import RewardConfig
from marble_cli.rewards.conformance import Outcome, run_checks
from marble_cli.rewards.registry import build
from marble_cli.rewards.scorer import Scorer, Scores, open_scorer
from marble_cli.rewards.settings import _read_precision
from marble_cli.rewards.testing.samples import sample_batch

Write = Callable[..., str]

# How a plugin changes it, how to see it, and what the warning says.
EVERYWHERE: list[tuple[str, Callable[[], Any], str]] = [
    (
        "torch.set_default_dtype(torch.float64)",
        torch.get_default_dtype,
        "the default dtype (torch.float32 -> torch.float64)",
    ),
    ("torch.set_default_device('meta')", torch.get_default_device, "the default device (cpu -> meta)"),
    ("torch.set_grad_enabled(not torch.is_grad_enabled())", torch.is_grad_enabled, "gradients ("),
    # Kept to the end of the process: one that is collected in another thread sets that thread's gradients.
    # Which sets gradients, too.
    (
        "mode = torch.inference_mode(not torch.is_inference_mode_enabled()); "
        "sys.held = [*getattr(sys, 'held', []), mode]; mode.__enter__()",
        torch.is_inference_mode_enabled,
        "inference mode (",
    ),
    (
        "torch.autocast('cpu', torch.bfloat16).__enter__()",
        lambda: torch.is_autocast_enabled("cpu"),
        "autocast",
    ),
    (
        "torch.use_deterministic_algorithms(True)",
        torch.are_deterministic_algorithms_enabled,
        "deterministic algorithms",
    ),
    (
        "torch.use_deterministic_algorithms(True, warn_only=True)",
        torch.is_deterministic_algorithms_warn_only_enabled,
        "deterministic algorithms",
    ),
    ("torch.backends.cudnn.benchmark = True", lambda: torch.backends.cudnn.benchmark, "cuDNN's settings"),
    (
        "torch.backends.cudnn.deterministic = True",
        lambda: torch.backends.cudnn.deterministic,
        "cuDNN's settings",
    ),
    ("torch.backends.cudnn.enabled = False", lambda: torch.backends.cudnn.enabled, "cuDNN's settings"),
    ("torch.backends.mkldnn.set_flags(False)", lambda: torch.backends.mkldnn.enabled, "oneDNN's settings"),
    (
        "torch.backends.mkldnn.deterministic = True",
        lambda: torch.backends.mkldnn.deterministic,
        "oneDNN's settings",
    ),
    (
        "torch.backends.mha.set_fastpath_enabled(False)",
        torch.backends.mha.get_fastpath_enabled,
        "the fast path of attention",
    ),
    (
        "torch.utils.deterministic.fill_uninitialized_memory = False",
        lambda: torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "the filling of new memory",
    ),
    (
        "torch.set_autocast_cache_enabled(False)",
        torch.is_autocast_cache_enabled,
        "autocast's cache (True -> False)",
    ),
    (
        "torch.overrides.TorchFunctionMode().__enter__()",
        torch._C._len_torch_function_stack,
        "the modes of torch's functions",
    ),
    (
        "torch.set_float32_matmul_precision('medium')",
        torch.get_float32_matmul_precision,
        "the precision of float32 products",
    ),
    (
        "torch.backends.cuda.matmul.allow_tf32 = True",
        lambda: torch.backends.cuda.matmul.allow_tf32,
        "the precision of float32 products",
    ),
    (
        "torch.backends.cudnn.allow_tf32 = False",
        lambda: torch.backends.cudnn.allow_tf32,
        "the precision of float32 products",
    ),
    ("torch.backends.fp32_precision = 'tf32'", _read_precision, "the precision of float32 products"),
    (
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False",
        lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "the precision of sums",
    ),
    ("torch.autograd.set_detect_anomaly(True)", torch.is_anomaly_enabled, "autograd's search for anomalies"),
    ("torch.set_num_threads(torch.get_num_threads() + 2)", torch.get_num_threads, "the number of threads"),
    (
        "torch.set_flush_denormal(True)",
        lambda: sys.float_info.min / 2 == 0,
        "the flushing of denormal numbers",
    ),
    ("np.seterr(all='raise')", np.geterr, "numpy's treatment of errors"),
    (
        "torch.manual_seed(torch.initial_seed() + 1)",
        lambda: (torch.initial_seed(), torch.get_rng_state().tolist()),
        "torch's random numbers",
    ),
    ("os.chdir('/')", os.getcwd, "the working directory"),
    (
        "logging.disable(logging.CRITICAL)",
        lambda: logging.root.manager.disable,
        "the level up to which logging is off",
    ),
    ("socket.setdefaulttimeout(0.5)", socket.getdefaulttimeout, "the timeout of sockets"),
]
IN_QUIET: list[tuple[str, Callable[[], Any], str]] = [
    ("random.seed(7)", random.getstate, "Python's random numbers"),
    ("np.random.seed(7)", lambda: repr(np.random.get_state()), "numpy's random numbers"),  # noqa: NPY002
    (
        "torch.backends.cuda.enable_flash_sdp(False)",
        torch.backends.cuda.flash_sdp_enabled,
        "the attention kernels",
    ),
    (
        "os.environ['WANDB_MODE'] = 'disabled'",
        lambda: os.environ.get("WANDB_MODE"),
        "the environment variables",
    ),
    (
        "os.environ['OMP_NUM_THREADS'] = '77'",
        lambda: os.environ.get("OMP_NUM_THREADS"),
        "the environment variables",
    ),
    ("os.environ.pop('RANK', None)", lambda: os.environ.get("RANK"), "the environment variables"),
    ("os.umask(0)", lambda: (os.umask(0o22), os.umask(0o22))[1], "the mask of new files' rights"),
    (
        "logging.basicConfig(level=0, force=True)",
        lambda: (logging.root.level, list(logging.root.handlers)),
        "the run's loggers",
    ),
    (
        "logging.getLogger('marble').disabled = True",
        lambda: logging.getLogger("marble").disabled,
        "the run's loggers",
    ),
    (
        "warnings.filterwarnings('error', 'of that')",
        lambda: [row for row in warnings.filters if row[0] == "error"],
        "which warnings",
    ),
    ("locale.setlocale(locale.LC_ALL, 'C')", lambda: locale.setlocale(locale.LC_ALL), "the locale"),
    ("import io; sys.stderr = io.StringIO()", lambda: sys.stderr, "standard error"),
    ("gc.disable()", gc.isenabled, "garbage collection"),
]
READ = {change: read for change, read, _ in EVERYWHERE}


def score(scorer: Scorer) -> Scores:
    pictures = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    return scorer.submit(pictures, ["a", "b"], [{}, {}], ["", ""]).result()


@pytest.fixture(autouse=True)
def _start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    locale.setlocale(locale.LC_ALL, "C.UTF-8")


@pytest.mark.parametrize("stage", ["imported", "built"])
@pytest.mark.parametrize(("change", "read", "said"), EVERYWHERE + IN_QUIET)
def test_changes_at_import_or_build_are_restored_and_named(
    write: Write,
    caplog: pytest.LogCaptureFixture,
    stage: str,
    change: str,
    read: Callable[[], Any],
    said: str,
) -> None:
    change = f"def change():\n    {change}\nchange()"
    name, before = write(**{stage: change}), read()
    for _ in range(2):
        build(name, name, {}, "cpu")
    assert read() == before
    [warning] = {record.getMessage() for record in caplog.records}
    assert f"reward {name}, when it was {stage}, changed " in warning
    assert said in warning


@pytest.mark.parametrize(("change", "said"), [(change, said) for change, _, said in EVERYWHERE])
def test_changes_in_a_call_are_restored_and_named(
    write: Write, caplog: pytest.LogCaptureFixture, change: str, said: str
) -> None:
    called = f"seen.append(read())\n{change}\nassert len(seen) > 1 or str(read()) != str(seen[0])"
    name, read = write(called=called, imported="seen = []"), READ[change]
    here = read()
    with open_scorer({name: RewardConfig(plugin=name, retries=0)}, "cpu") as scorer:
        plugin = sys.modules[name]
        plugin.read = read  # type: ignore[attr-defined]
        for _ in range(3):
            assert score(scorer).applicable.all(), scorer.workers[0].error
    assert len(plugin.seen) == 3
    assert str(plugin.seen[0]) == str(plugin.seen[2]) or "seed" in change  # in the thread that calls it
    assert read() == here
    assert [record.getMessage().count(said) for record in caplog.records] == [1]
    assert f"reward {name}, when it was called, changed" in caplog.text


def test_the_run_goes_on_with_its_own_streams_and_a_reward_with_its_own(write: Write) -> None:
    called = "seen.append((torch.rand(1).item(), np.random.rand(), random.random()))"
    name = write(called=called, imported="seen = []")
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002
    with open_scorer({name: RewardConfig(plugin=name)}, "cpu") as scorer:
        for _ in range(3):
            score(scorer)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (repr(np.random.get_state()), random.getstate()) == before[1:]  # noqa: NPY002
    for draws in zip(*sys.modules[name].seen, strict=True):
        assert len(set(draws)) == 3  # it does not draw the same again


@pytest.mark.parametrize("count", [1, 2000])
def test_an_import_may_draw(write: Write, caplog: pytest.LogCaptureFixture, count: int) -> None:
    """As httpx's does, by rich, and from Python's stream."""
    before = repr(np.random.get_state()), random.getstate()  # noqa: NPY002
    name = write(imported=f"[(random.random(), np.random.rand()) for _ in range({count})]")
    build(name, name, {}, "cpu")
    assert (repr(np.random.get_state()), random.getstate()) == before  # noqa: NPY002
    assert not caplog.records


def test_a_network_may_be_built(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    name, before = write(built="self.network = torch.nn.Linear(4, 4)"), torch.get_rng_state()
    build(name, name, {}, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert not caplog.records


def test_the_check_names_the_settings_left_changed(write: Write) -> None:
    rude = write(imported="torch.set_default_dtype(torch.float64)", called="os.chdir('/')")
    polite = write(
        built="self.x = torch.nn.Linear(4, 4)", called="with torch.no_grad(): self.x(torch.rand(4))"
    )
    found = {}
    for name in (rude, polite):
        checks = run_checks(build(name, name, {}, "cpu"), sample_batch(()))
        [found[name]] = [check for check in checks if check.name == "leaves the process alone"]
    assert found[rude].outcome is Outcome.FAIL
    assert "the default dtype (torch.float32 -> torch.float64), the working directory (" in found[rude].detail
    assert found[polite].outcome is Outcome.PASS


def test_the_host_may_change_its_own_settings_in_between(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    name = write()
    with open_scorer({name: RewardConfig(plugin=name)}, "cpu") as scorer:
        score(scorer)
        torch.set_float32_matmul_precision("high")
        try:
            score(scorer)
            assert torch.get_float32_matmul_precision() == "high"
        finally:
            torch.set_float32_matmul_precision("highest")
    assert not caplog.records


def test_rewards_called_at_once_do_not_keep_each_other_s_settings(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    imported = "began, go = threading.Event(), threading.Event()"
    rude = write(
        imported=imported, called="torch.set_default_dtype(torch.float64)\nbegan.set()\nassert go.wait(30)"
    )
    late = write(imported=imported, called="began.set()\nassert go.wait(30)")
    with open_scorer({name: RewardConfig(plugin=name) for name in (rude, late)}, "cpu") as scorer:
        first, second = sys.modules[rude], sys.modules[late]
        for _ in range(3):
            for plugin in (first, second):
                plugin.began.clear()
                plugin.go.clear()
            pending = scorer.submit(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), [""], [{}], [""])
            assert first.began.wait(30)
            assert second.began.wait(30)
            second.go.set()
            assert pending.futures[1].result()[0].item() == 1.0
            assert torch.get_default_dtype() is torch.float32  # while the first is still called
            first.go.set()
            pending.result()
            assert torch.get_default_dtype() is torch.float32
    assert f"(or {rude} did)" in caplog.text
