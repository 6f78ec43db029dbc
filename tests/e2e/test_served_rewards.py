"""Rewards that only a second environment has: served there, or isolated and started by the run itself."""

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tenacity
import torch
from torch import Tensor

from marble_cli import __version__
from marble_cli.config.schema import RewardConfig, RunConfig
from marble_cli.errors import ConfigError, RequestError, RewardError
from marble_cli.plugins import installed
from marble_cli.rewards.elsewhere import isolated
from marble_cli.rewards.elsewhere.environment import RECORD, find, install
from marble_cli.rewards.elsewhere.isolated import IsolatedServer
from marble_cli.rewards.elsewhere.locate import declare
from marble_cli.rewards.scorer import Scorer, open_scorer
from marble_cli.run.train import train
from tests.distributed.processes import wait_for
from tests.e2e.environment import Environment, make_venv, rows
from tests.fork_server import Program

RunConfigMaker = Callable[..., RunConfig]
IMAGES = torch.randint(0, 256, (9, 3, 20, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
EXPECTED = (IMAGES.float().mean(dim=(1, 2, 3)) / 255).double()


def scores(scorer: Scorer) -> Tensor:
    return scorer.submit(IMAGES, [""] * 9, [{}] * 9, [""] * 9).result().values[0]


@pytest.fixture(autouse=True)
def _lacks_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "brightness" not in installed()
    monkeypatch.delenv("MARBLE_REWARD_TOKEN", raising=False)


# At a url


@contextmanager
def served(environment: Environment, *arguments: object, token: str = "") -> Iterator[tuple[str, Program]]:
    """A `marble rewards serve` in the second environment: its address and process."""
    assert environment.forks is not None
    variables = environment.variables() | ({"MARBLE_REWARD_TOKEN": token} if token else {})
    command = ("-m", "marble_cli", "rewards", "serve", *arguments)
    process = environment.forks.start(command, variables, environment.folder)
    output = process.folder / "out"
    try:
        wait_for(lambda: output.is_file() and output.read_text().endswith("\n"), "the address", 60)
        yield json.loads(output.read_text().splitlines()[0])["url"], process
    finally:
        process.kill()
        process.wait()


def test_a_served_reward_scores_and_trains_a_run_whose_server_restarts(
    environment: Environment,
    run_config: RunConfigMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MARBLE_REWARD_TOKEN", "secret")
    monkeypatch.setattr("marble_cli.rewards.worker.BACK_OFF", tenacity.wait_fixed(0.05))
    with (
        served(environment, "brightness", token="secret") as (url, process),
        open_scorer({"far": RewardConfig(plugin="brightness", url=url, retries=400)}, "cpu") as scorer,
    ):
        assert torch.equal(scores(scorer), EXPECTED)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
        pending = scorer.submit(IMAGES, [""] * 9, [{}] * 9, [""] * 9)
        port = url.rpartition(":")[2]
        with served(environment, "brightness", "--port", port, token="secret") as (again, second):
            assert again == url
            assert torch.equal(pending.result().values[0], EXPECTED)
            second.send_signal(signal.SIGINT)
            assert second.wait() == 0
    with served(environment, "brightness", token="secret") as (url, _):
        config = run_config(
            f"run.dir={tmp_path / 'run'}",
            f"+rewards.far={{plugin: brightness, url: '{url}'}}",
            "trainer.steps=2",
        )
        assert train(config, resume="never") == 0
    assert [0 < row["reward/far/mean"] < 1 for row in rows(tmp_path / "run")] == [True, True]
    assert "secret" not in (tmp_path / "run" / "config.yaml").read_text()


def test_serving_imports_no_model(environment: Environment) -> None:
    code = (
        "import sys; from marble_cli.__main__ import main\ntry: main()\nexcept SystemExit: pass\n"
        "assert 'diffusers' not in sys.modules"
    )
    done = subprocess.run(
        [environment.python, "-c", code, "rewards", "serve", "brightness", "--dry-run"],
        cwd=environment.folder, env=environment.variables(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rewards"]["brightness"]["origin"] == "thirdparty-rewards 1.0"


# Isolated


@pytest.fixture(scope="module")
def home(environment: Environment) -> Iterator[Path]:
    """MARBLE_HOME with an isolated environment for `brightness` and its like, as a user repairs it.

    After an earlier installation one fails, and does not count; another completes what is there.
    """
    root = environment.folder.parent
    home = root / "home"
    own = home / "rewards" / "brightness"
    make_venv(own / "venv", root / "site")
    (marker := own / "venv" / "kept").touch()
    rewards = ("brightness", "broken", "flaky", "hangs", "kept", "short", "silent")
    earlier = {"folder": str(own), "marble": __version__, "rewards": rewards}
    (own / RECORD).write_text(json.dumps(earlier))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARBLE_HOME", str(home))
        for option in ("NO_DEPS", "NO_INDEX", "QUIET"):
            patch.setenv(f"PIP_{option}", "1")
        patch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's way of saying that there shall be none
        before = find("silent")
        with pytest.raises(RewardError, match="pip could not install nowhere"):
            install("brightness", "nowhere")
        with pytest.raises(
            ConfigError, match=r"no isolated environment .* offers the reward 'silent'.*Known: none"
        ):
            find("silent")  # what was cut short does not count
        assert install("brightness", str(root / "plugin")) == before == find("silent")
        assert before.rewards == rewards
        assert marker.exists()
        yield home


@pytest.fixture
def python(environment: Environment, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the Python of the isolated environment, by forks; one test starts this itself."""
    assert environment.forks is not None
    environment.forks.write_python(tmp_path / "python")
    own = isolated.serve_command
    monkeypatch.setattr(isolated, "serve_command", lambda plugin: in_forks(own(plugin), tmp_path / "python"))
    return tmp_path / "python"


def in_forks(command: list[str], python: Path) -> list[str]:
    assert command[1] == "-P", command
    return [str(python), *command[2:]]


def test_install_of_an_unknown_reward_is_refused(home: Path) -> None:
    for name, source, said in (
        ("../up", None, "is no name"),
        ("compressibility", None, "one of marble's own"),
        ("x", "./nowhere", "no such folder"),
        ("brightness", None, "no reward or distribution 'brightness' is installed here.*--from"),
        ("x", "--index-url=http://x", "no such folder"),
    ):
        with pytest.raises(RequestError, match=said):
            install(name, source)
    assert not (home / "rewards" / "x").exists()


def test_a_wrong_isolated_reward_is_refused_before_it_is_built(python: Path) -> None:
    wrong = RewardConfig(plugin="broken", isolated=True, options={"good_cals": 1})
    with pytest.raises(
        ConfigError, match=r"isolated reward mine: eval_rewards.mine.good_cals: .*did you mean 'good_calls'"
    ):
        declare("mine", wrong, "eval_rewards.mine")
    with pytest.raises(ConfigError, match="offers the reward 'brightnes'.*marble rewards install brightnes"):
        declare("mine", RewardConfig(plugin="brightnes", isolated=True))


def test_an_isolated_reward_is_sent_the_pictures_before_the_edit(home: Path) -> None:
    """And known before it is built."""
    settings = RewardConfig(plugin="kept", isolated=True)
    declared = declare("mine", settings)
    assert (declared.summary, declared.needs_conditions) == ("How little a picture changed, 0 at best.", True)
    before = [[picture] for picture in IMAGES.flip(0)]
    kept = -(IMAGES.float() - IMAGES.flip(0).float()).abs().mean((1, 2, 3)).double()
    words = [""] * 9, [{}] * 9, [""] * 9
    with open_scorer({"mine": settings}, "cpu") as scorer:
        assert torch.equal(scorer.submit(IMAGES, *words, references=before).result().values[0], kept)
        assert not scorer.submit(IMAGES, *words).result().applicable.any()


def test_a_server_that_hangs_or_dies_is_restarted(
    python: Path, tmp_path: Path, marble_logs: pytest.LogCaptureFixture
) -> None:
    settings = RewardConfig(
        plugin="hangs", isolated=True, timeout=1.0, options={"marker": str(tmp_path / "marker")}
    )
    with open_scorer({"mine": settings}, "cpu") as scorer:
        first = process(scorer)
        assert scores(scorer).tolist() == [1.0] * 9
        assert "reward mine: restart 1 of its server" in marble_logs.text
        assert "reward mine is gone" not in marble_logs.text
        second = process(scorer)
        os.kill(second.pid, signal.SIGKILL)
        assert scores(scorer).tolist() == [1.0] * 9
        assert "reward mine is gone; building it anew" in marble_logs.text
        third = process(scorer)
    assert first.pid != second.pid != third.pid
    assert all(gone(one.pid) for one in (first, second, third))


def test_no_server_is_left_when_the_run_is_killed(
    environment: Environment, home: Path, python: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.py").write_text("""
import sys
import time
from marble_cli.config.schema import RewardConfig
from marble_cli.rewards.elsewhere import isolated
from marble_cli.rewards.scorer import open_scorer
own = isolated.serve_command
isolated.serve_command = lambda plugin: [sys.argv[1], *own(plugin)[2:]]
with open_scorer({"mine": RewardConfig(plugin="brightness", isolated=True)}, "cpu") as scorer:
    print(scorer.workers[0].make.__self__.process.pid, flush=True)
    time.sleep(3600)
""")
    assert environment.forks is not None
    variables = environment.variables() | {"MARBLE_HOME": str(home)}
    run = environment.forks.start([tmp_path / "run.py", python], variables, tmp_path)
    try:
        output = run.folder / "out"
        wait_for(lambda: output.is_file() and output.read_text().endswith("\n"), "the server", 60)
        pid = int(output.read_text())
        assert not gone(pid, 0.0)
    finally:
        run.kill()
    assert gone(pid)


def process(scorer: Scorer) -> "subprocess.Popen[str]":
    server: IsolatedServer = scorer.workers[0].make.__self__  # type: ignore[attr-defined]
    assert server.process is not None
    return server.process


def gone(pid: int, within: float = 10.0) -> bool:
    """Whether a process ends within some seconds; one that only its parent has yet to hear of has ended."""
    deadline = time.monotonic() + within
    while True:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)


@pytest.fixture
def marble_logs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """Other tests may have taken the `marble` logger's lines elsewhere."""
    monkeypatch.setattr(logging.getLogger("marble"), "propagate", True)
    caplog.set_level(logging.WARNING, "marble")
    return caplog
