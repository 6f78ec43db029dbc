"""Secrets do not appear in a run's folder, in W&B or on the terminal."""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from marble_cli.balance.cache import DirectionCache
from marble_cli.cli.app import main
from marble_cli.config.compose import compose
from marble_cli.plugins import installed
from marble_cli.redaction import RedactedStream, learn
from marble_cli.run.recorder import LogFile, RunRecorder
from marble_cli.run.state import Progress
from tests.redaction.samples import HELD, SECRET, secretive


def test_run_folder_and_wandb_show_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []
    monkeypatch.setattr("marble_cli.run.recorder.Trackers", lambda *rest: given.append(rest) or Silent())
    config = compose([*secretive(), f"run.dir={tmp_path}"])
    progress = Progress(0, DirectionCache(), {}, {})
    shown = f"no {' '.join(HELD)} " + "x" * 70 + f" {SECRET}"
    with RunRecorder(config, tmp_path, progress, main=True) as recorder:
        recorder.message(shown)
        logging.getLogger("marble").warning("%s: %s", "reward mine failed", shown)
        recorder.journal.info(shown)
        recorder.__exit__(RuntimeError, RuntimeError(shown), None)
        recorder.__enter__()
    out = "".join(capsys.readouterr())
    written = (tmp_path / "log.txt").read_text() + str(given) + out.replace("\n", "")
    assert "reward mine failed" in written
    assert written.count("***") > 10
    assert not any(secret in written for secret in HELD)


class Silent:
    def id(self, name: str) -> None:
        """Return nothing."""

    def close(self) -> None:
        """Do nothing."""


def test_log_txt_hides_what_a_traceback_quotes(tmp_path: Path) -> None:
    learn(SECRET)
    handler = LogFile(tmp_path / "log.txt")
    try:
        raise ValueError(SECRET)
    except ValueError:
        record = logging.LogRecord("marble", logging.ERROR, "", 0, "it failed", None, sys.exc_info())
    handler.emit(record)
    handler.close()
    assert "ValueError: ***" in (tmp_path / "log.txt").read_text()


def leaky(images: object) -> None:
    """Fail with an error that contains the key."""
    print(f"printing {SECRET}")
    print(f"warning {SECRET}", file=sys.stderr)
    with socket.create_server(("127.0.0.1", 0)) as listener, httpx.Client(trust_env=False) as client:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client.get(url, headers={"Authorization": f"Bearer {SECRET} \n"})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Run `marble` with the reward `mine`, which is `leaky`; return everything that it writes."""
    known = {**installed(), "mine": EntryPoint("mine", f"{__name__}:leaky", "marble.rewards")}
    for module in ("config.compose", "config.validate", "rewards.registry"):
        monkeypatch.setattr(f"marble_cli.{module}.installed", lambda: known)
    load = EntryPoint.load
    monkeypatch.setattr(EntryPoint, "load", lambda entry: leaky if entry.name == "mine" else load(entry))
    monkeypatch.setenv("COLUMNS", "60")
    logger = logging.getLogger("marble")
    handlers = list(logger.handlers)

    def call(*arguments: object) -> str:
        logger.handlers = []
        monkeypatch.setattr(sys, "argv", ["marble", *map(str, arguments)])
        with pytest.raises(SystemExit):
            main()
        return "".join(capfd.readouterr())

    yield call
    logger.handlers = handlers


def test_plugin_output_and_errors_show_no_secret(run: Callable[..., str], tmp_path: Path) -> None:
    os.environ |= {"MINE_API_KEY": SECRET}
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    said = run("rewards", "score", "mine", "--image", picture, "--prompt", "a", "rewards.mine.retries=0")
    assert "printing ***" in said
    assert "warning ***" in said
    assert "Illegal header value ***" in said
    assert SECRET not in said.replace("\n", "")
    assert SECRET not in run("rewards", "check", "mine").replace("\n", "")
    assert SECRET not in run("rewards", "check", "mine", "--json")


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--print-config", "+rewards.mine.plugin=mine", f"+rewards.mine.api_key={SECRET}"),
        ("train", f"rewards.mine.api_key={SECRET}"),
        ("train", f"rewrds.mine.api_key={SECRET}"),
        ("train", f"+rewards.mine={{plugin: mine, api_key: '{SECRET}'}}", "trainer.steps=x"),
        ("train", f"+rewards.mine={{plugin: mine, api_key: '{SECRET}'}}", "run.dir=/proc/no"),
        ("train", "+rewards.mine={plugin: mine, url: 'http://me:zyxw-98.76@far:80'}"),
        ("train", '+rewards.mine={plugin: mine, api_key: "zyxw horse: battery staple}'),
        ("train", "+rewards.mine={plugin: mine, api_key: zyxw horse (battery) staple}"),
        ("train", "+rewards.mine={plugin: \"mine\", 'api_key': zyxw's horse (battery) staple}"),
        ("train", "+rewards.mine.plugin=mine", "rewards.mine.api_key=zyxw horse (battery) staple"),
        ("train", "+rewards.mine.plugin=mine", 'rewards.mine.api_key=it\'s zyxw ("horse") staple'),
        ("train", "+rewards.mine.plugin=mine", 'rewards.mine.api_key="zyxw horse",staple'),
        ("train", 'rewrds.mine.api_key="zyxw it\'s a horse"'),
        (
            "train",
            "+rewards.mine={plugin: mine, api_key: [zyxw1,zyxw2], token: {main: zyxw3}}",
            "trainer.steps=x",
        ),
        ("train", "+rewards.mine={plugin: mine, api_key: [zyxw1,zyxw2]}", "--print-config"),
        (
            "rewards",
            "show",
            "mine",
            "+rewards.mine={plugin: mine, isolated: true, api_key: '" + SECRET + "'}",
        ),
        ("rewards", "serve", "mine", "--host", "192.0.2.1", "--token", SECRET),
    ],
)
def test_commands_show_no_secret_that_they_were_given(
    run: Callable[..., str], arguments: tuple[str, ...]
) -> None:
    said = run(*arguments).replace("\n", "")
    assert said
    assert not any(part in said for part in ("zyxw", "horse", "staple"))


def test_standard_streams_hide_secrets_of_all_writers() -> None:
    """Cover prints, warnings, tracebacks, other threads and loggers, in a separate process."""
    code = (
        "import logging, os, sys, threading, warnings; from marble_cli.redaction import redact_output\n"
        "secret = os.environ['MINE_TOKEN']; redact_output()\n"
        "print(secret); print('é', secret, file=sys.stderr); sys.stdout.writelines([secret, '\\n'])\n"
        "warnings.warn(secret); logging.getLogger('other').error(secret)\n"
        "def fail(): raise ValueError(secret)\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join(); print('x', end='')\n"
        "fail()"
    )
    environment = {**os.environ, "MINE_TOKEN": SECRET, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 1
    assert said.count("***") >= 7
    assert "zyxw" not in said
    assert "é ***" in said
    assert done.stdout.endswith(b"x")


def test_redacted_stream_keeps_encoding_and_descriptor(tmp_path: Path) -> None:
    with (tmp_path / "ascii.txt").open("w", encoding="ascii", errors="backslashreplace") as file:
        stream = RedactedStream(file)
        assert stream.write("é\n") == 2
        assert (stream.encoding, stream.errors, stream.fileno()) == (
            "ascii",
            "backslashreplace",
            file.fileno(),
        )
        with pytest.raises(TypeError):
            stream.write(b"bytes")  # type: ignore[arg-type]
        stream.close()
        file.write("still open")
    assert (tmp_path / "ascii.txt").read_text() == "\\xe9\nstill open"
