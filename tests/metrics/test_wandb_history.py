"""`marble sync` leaves one history at W&B with every step once, however a run was stopped and resumed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from marble_cli.cli.app import app
from marble_cli.config.enums import WandbMode
from marble_cli.config.schema import RunConfig, WandbConfig
from marble_cli.errors import ConfigError, MarbleError, RequestError
from marble_cli.metrics import wandb_history
from marble_cli.metrics.jsonl import MetricsLog, truncate_after
from marble_cli.metrics.wandb_history import list_starts, list_unsent_starts, read_identity, upload_history
from marble_cli.metrics.weights_and_biases import WandbRun, end_service
from marble_cli.run.train import train
from tests.fork_server import start_server
from tests.metrics.service import Service, serving

RunConfigMaker = Callable[..., RunConfig]

ID = "abc12345"


@pytest.fixture(scope="module")
def serviced() -> Iterator[Service]:
    """Serve all tests, for whom W&B's client is then the same."""
    with serving() as found:
        end_service()  # the process remembers the service of earlier files
        yield found
        end_service()


@pytest.fixture(scope="module")
def forking_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Python that has imported W&B's command, which takes it longer than an upload."""
    folder = tmp_path_factory.mktemp("wandb-forks")
    with closing(start_server(sys.executable, os.environ, folder, ["wandb.cli.cli"])) as forks:
        forks.write_python(folder / "python")
        yield folder / "python"


@pytest.fixture
def service(
    serviced: Service, forking_python: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Service:
    """A service without runs that this process has a key for, without other W&B settings."""
    serviced.histories.clear()
    serviced.called.clear()
    monkeypatch.setenv("WANDB_BASE_URL", serviced.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr(sys, "executable", str(forking_python))
    return serviced


def made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def start(folder: Path, mode: str, first: int, last: int, run_id: str | None = ID) -> None:
    """Start the run before step `first` and stop it after `last`; every second step is evaluated."""
    (made(folder) / "config.yaml").write_text(
        "run: {name: n}\nlogging: {wandb: {mode: auto, project: null, entity: null}}\n"
    )
    truncate_after(folder / "metrics.jsonl", first - 1)
    metrics = MetricsLog(folder / "metrics.jsonl")
    run = WandbRun(WandbConfig(WandbMode[mode], "p", None), folder, "n", {"a": 1}, run_id, first)
    for step in range(first, last + 1):
        rows = [{"step": step, "phase": "train", "loss": 0.5 * step, "start": first}]
        rows += [{"step": step, "phase": "eval", "reward/ocr/mean": 2.0 * step}] if step % 2 == 0 else []
        for row in rows:
            metrics.write(row)
            run.write(row)
    metrics.close()
    run.close()


SEQUENCES = [
    [("offline", 1, 5)],
    [("offline", 1, 5), ("offline", 6, 8)],  # stopped and resumed
    # Killed, steps repeated.
    [
        ("offline", 1, 5),
        ("offline", 4, 6),
        ("offline", 5, 8),
        ("offline", 7, 9),
    ],
    # Started over before a checkpoint, and then shorter than before.
    [
        ("offline", 1, 5),
        ("offline", 1, 3),
    ],
    [("online", 1, 5), ("offline", 6, 8)],
    [("online", 1, 5), ("offline", 4, 8), ("offline", 9, 9)],
    [("offline", 1, 5), ("online", 6, 8)],
    # Steps repeated that W&B has: after a rollback, or a resume from an earlier step.
    [("online", 1, 5), ("online", 3, 7)],
    [("online", 1, 5), ("online", 3, 4), ("online", 5, 6)],
    [("offline", 1, 4), ("disabled", 5, 6), ("offline", 7, 8)],  # two steps were never logged to W&B
]


def test_upload_leaves_one_history_for_any_sequence_of_starts(service: Service, tmp_path: Path) -> None:
    """One service takes them all, as starting its client takes a second."""
    for number, parts in enumerate(SEQUENCES):
        run, run_id = tmp_path / f"run-{number}", f"abc{number:05}"
        for part in parts:
            start(run, *part, run_id=run_id)
        last = parts[-1][2]
        assert upload_history(run) == last, parts
        assert list(service.histories) == [f"abc{earlier:05}" for earlier in range(number + 1)], parts
        assert service.steps(run_id) == list(range(1, last + 1)), parts
        assert service.values(run_id, "loss") == [0.5 * step for step in range(1, last + 1)], parts
        evaluated = [None if step % 2 else 2.0 * step for step in range(1, last + 1)]
        assert service.values(run_id, "eval/reward/ocr/mean") == evaluated, parts
        began = [max(first for _, first, end in parts if first <= step) for step in range(1, last + 1)]
        assert service.values(run_id, "start") == began, parts  # repeated steps: as in the last start
        assert service.called[run_id] == ("p", None, "n"), parts
        assert list_unsent_starts(run) == [], parts
        before = {key: dict(lines) for key, lines in service.histories.items()}
        assert upload_history(run) == 0, parts
        assert service.histories == before, parts


def test_offline_start_after_a_sync_uploads_everything_again(service: Service, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for first, last in ((1, 3), (4, 6)):
        start(run, "offline", first, last)
        assert upload_history(run) == last
    assert service.steps(ID) == [1, 2, 3, 4, 5, 6]


def test_starts_without_an_id_reuse_the_first_id(service: Service, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start(run, "offline", 1, 3, run_id=None)  # killed before its first checkpoint
    start(run, "offline", 1, 4, run_id=None)
    ids = {log.stem for part in list_starts(run) for log in part.glob("run-*.wandb")}
    assert len(list_starts(run)) == 2
    assert len(ids) == 1
    assert upload_history(run) == 4
    assert service.steps(ids.pop().removeprefix("run-")) == [1, 2, 3, 4]


def test_cleared_folder_gets_a_new_id(run_config: RunConfigMaker, tmp_path: Path) -> None:
    config = run_config(f"run.dir={tmp_path}", "logging.wandb.mode=offline", "trainer.steps=1")

    def run_id() -> str:
        assert train(config, resume="auto") == 0
        found = read_identity(tmp_path)
        assert found is not None
        return found.id

    first = run_id()
    shutil.rmtree(tmp_path / "checkpoints")
    assert run_id() == first  # started over
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "config.yaml").unlink()
    assert run_id() != first


def test_refused_upload_stays_unsent(service: Service, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start(run, "offline", 1, 3)
    kept = list_unsent_starts(run)
    service.broken = True
    with pytest.raises(MarbleError, match=r"W&B did not take the run's history: .*everything is still there"):
        upload_history(run)
    assert list_unsent_starts(run) == kept
    service.broken = False
    assert upload_history(run) == 3


def test_start_of_a_running_process_stays_unsent(service: Service, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start(run, "offline", 1, 3)
    start(run, "offline", 4, 5)
    assert upload_history(run, running=True) == 5
    assert list_unsent_starts(run) == list_starts(run)[-1:]
    assert upload_history(run) == 5
    start(run, "offline", 6, 6)
    last = list_starts(run)[-1]
    # W&B's folder names have a resolution of one second.
    last.rename(last.with_name(f"offline-run-20200101_000000-{ID}"))
    going = WandbRun(WandbConfig(WandbMode.online, "p", None), run, "n", {}, ID, 7)
    with pytest.raises(RequestError, match="still sending its metrics itself"):
        upload_history(run, running=True)
    going.close()


def test_run_without_an_identity_file_is_inferred_or_refused(service: Service, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start(run, "offline", 1, 2)
    (run / "wandb" / "run.json").unlink()
    assert upload_history(run) == 2
    assert service.called[ID] == ("marble", None, "n")
    start(run, "offline", 3, 3)
    (run / "wandb" / "run.json").write_text("{")
    with pytest.raises(RequestError, match=r"run\.json cannot be read .*Delete it"):
        upload_history(run)


def test_upload_includes_pictures(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    run = tmp_path / "run"
    start(run, "offline", 1, 4)
    (run / "samples").mkdir()
    for step in (2, 6):  # step 6 has a picture but no row
        Image.new("RGB", (4, 4)).save(run / "samples" / f"step-{step:08d}.png")
    assert upload_history(run) == 4
    shown = service.values(ID, "samples")
    assert [value is not None for value in shown] == [False, True, False, False]


def test_unreachable_service_keeps_metrics_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb_history, "PATIENCE", 1.0)
    end_service()
    start(tmp_path, "online", 1, 2)
    assert "W&B cannot be reached" in caplog.text
    (kept,) = list_unsent_starts(tmp_path)  # the failed online attempt has no data
    assert kept.name.startswith("offline-run-")
    assert read_identity(tmp_path).id == ID  # type: ignore[union-attr]
    with pytest.raises(MarbleError, match=r"W&B at http://127.0.0.1:9 cannot be reached: .* still there"):
        upload_history(tmp_path)
    end_service()


def test_online_start_warns_about_unsent_steps(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path, "offline", 1, 2)
    assert "lacks earlier steps" not in caplog.text
    start(tmp_path, "online", 3, 4)
    assert f"W&B lacks earlier steps of this run; when it has ended: marble sync {tmp_path}" in caplog.text


def test_online_start_that_continues_is_sent_and_one_that_repeats_steps_waits(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path, "online", 1, 3)
    start(tmp_path, "online", 4, 5)
    assert service.values(ID, "start") == [1, 1, 1, 4, 4]
    assert (list_unsent_starts(tmp_path), caplog.text) == ([], "")
    start(tmp_path, "online", 4, 6)
    assert service.values(ID, "start") == [1, 1, 1, 4, 4, 4], "W&B keeps steps 4 and 5"
    assert list_unsent_starts(tmp_path) == list_starts(tmp_path)[-1:]
    assert f"W&B takes no figures of steps that it has; when the run has ended: marble sync {tmp_path}" in (
        caplog.text
    )


def test_offline_start_logs_its_own_steps(tmp_path: Path) -> None:
    start(tmp_path, "offline", 1, 2)
    start(tmp_path, "offline", 3, 3)
    assert len(list_starts(tmp_path)) == 2
    found = read_identity(tmp_path)
    assert found is not None
    assert (found.id, found.name, found.project, found.config) == (ID, "n", "p", {"a": 1})


def test_run_follows_wandb_variables_and_reports_ignored_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    end_service()
    WandbRun(WandbConfig(WandbMode.auto, None, None), made(tmp_path / "one"), "n", {}, ID, 0).close()
    assert "not followed" not in caplog.text
    monkeypatch.setenv("WANDB_MODE", "online")
    WandbRun(WandbConfig(WandbMode.offline, "ours", None), made(tmp_path / "other"), "n", {}, ID, 0).close()
    for words in (
        "mode=offline is set, so WANDB_MODE=online",
        "project=ours is set, so WANDB_PROJECT=theirs",
    ):
        assert f"logging.wandb.{words} is not followed" in caplog.text
    for name, project in (("one", "theirs"), ("other", "ours")):
        assert read_identity(tmp_path / name).project == project  # type: ignore[union-attr]
        assert [start.name.startswith("offline-") for start in list_starts(tmp_path / name)] == [True]
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(ConfigError, match="WANDB_MODE='onlin' is no mode"):
        WandbRun(WandbConfig(WandbMode.auto, None, None), tmp_path / "third", "n", {}, ID, 0)
    end_service()


def test_disabled_wandb_writes_nothing(tmp_path: Path) -> None:
    run = WandbRun(WandbConfig(WandbMode.disabled, "p", None), tmp_path, "n", {}, None, 0)
    run.write({"step": 1, "phase": "train", "x": 1.0})
    run.images(1, torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ["a cup"])
    run.close()
    assert run.id is None
    assert list(tmp_path.iterdir()) == []


def test_sync_command_uploads_the_history(service: Service, tmp_path: Path) -> None:
    start(tmp_path / "one", "offline", 1, 2)
    start(tmp_path / "other", "disabled", 1, 2)
    shown = CliRunner().invoke(app, ["sync", str(tmp_path / "one"), str(tmp_path / "other")])
    assert shown.exit_code == 0
    assert shown.output.splitlines() == [
        f"{tmp_path / 'one'}: 2 steps sent, as one history",
        f"{tmp_path / 'other'}: nothing sent, because no start of the run logged to W&B",
    ]
    again = CliRunner().invoke(app, ["sync", str(tmp_path / "one")])
    assert again.output.splitlines() == [f"{tmp_path / 'one'}: W&B lacks nothing"]
    assert json.loads((tmp_path / "one" / "wandb" / "run.json").read_text())["id"] == ID


def test_service_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service may retry an upload for hours."""
    stuck = tmp_path / "wandb-stuck"
    shutil.copy(shutil.which("sleep") or "", stuck)
    process = subprocess.Popen([stuck, "3600"])
    monkeypatch.setattr(wandb_history, "PATIENCE", 0.2)
    monkeypatch.setattr("wandb.teardown", process.wait)
    end_service()
    assert process.wait(10) < 0
