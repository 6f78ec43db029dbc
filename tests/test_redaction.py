"""Secrets leave the process in no text: not on the terminal, in files, in W&B or in what servers say."""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from marble_cli import redaction
from marble_cli.checkpoint.resume import differences
from marble_cli.cli.app import main
from marble_cli.config import references
from marble_cli.config.compose import compose, dump, load_resolved
from marble_cli.config.schema import RewardConfig
from marble_cli.errors import ConfigError
from marble_cli.plugins import installed
from marble_cli.redaction import RedactedStream, is_secret, learn, learn_environment, learn_options, redact
from marble_cli.rewards.elsewhere.locate import declare, maker
from marble_cli.run.recorder import LogFile, RunRecorder
from marble_cli.run.state import Progress

SECRET = "zyxw-98.76/54+32"  # of no shape that would give it away
ODD = "zyxw \"98'\t76\\54é\n"


@pytest.fixture(autouse=True)
def _unlearned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has learned nothing, and whose environment no test changes for others."""
    monkeypatch.setattr(redaction, "_learned", {})
    monkeypatch.setattr(redaction, "_values", None)
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.mark.parametrize(
    "form",
    [str, repr, ascii, json.dumps, lambda s: repr(s.encode()), lambda s: f"<{s}>", lambda s: repr([s])],
)
@pytest.mark.parametrize(
    "secret", [SECRET, ODD, f" {SECRET}", f"{SECRET}\r\n", "tr\x1bs\x00x", "пароль", "ab cd"]
)
def test_a_learned_value_is_hidden_in_every_form_that_messages_quote(
    secret: str, form: Callable[[str], str]
) -> None:
    learn(secret)
    text = redact(f"before {form(secret)} after")
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert "***" in text
    for part in (secret, repr(secret)[1:-1], secret.strip()):
        assert part not in text


def test_secrets_that_contain_each_other_are_hidden_whole() -> None:
    learn("abcd")
    learn("abcd-efgh")
    assert redact("abcd abcd-efgh") == "*** ***"


def test_what_is_too_short_or_empty_spoils_no_text() -> None:
    for value in (None, "", "a", "abc"):
        learn(value)
    assert redact("a cab abc") == "a cab abc"
    learn("test")
    assert redact("the latest test of b'test' and testing") == "the latest *** of b'***' and testing"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Illegal header value b'Bearer a b\\n'", "Illegal header value ***"),
        ('Illegal header value b"Bearer a\'b "', "Illegal header value ***"),
        ("Authorization: Bearer abc", "Authorization: ***"),
        ("{'authorization': 'Basic abc='}", "{'authorization': '***'}"),
        ("Proxy-Authorization: Digest a, b", "Proxy-Authorization: ***"),
        ("sent Bearer abc, got 401", "sent Bearer ***, got 401"),
        ("http://me:word@far:80/v1", "http://***@far:80/v1"),
        ("git+https://token@far/x", "git+https://***@far/x"),
        ("http://far/v1?api_key=abc&x=1", "http://far/v1?api_key=***&x=1"),
        ("http://far?x=1&X-Amz-Signature=abc#d", "http://far?x=1&X-Amz-Signature=***#d"),
        ("rewards.mine.api_key=abc", "rewards.mine.api_key=***"),
        ("rewards={a: {plugin: a, api_key=abc}}", "rewards={a: {plugin: a, api_key=***}}"),
        ("export JUDGE_KEY=abc", "export JUDGE_KEY=***"),
        ("HF_TOKEN='abc'", "HF_TOKEN='***'"),
        ("{'api-key': 'abc', \"Password\": \"d e\"}", "{'api-key': '***', \"Password\": \"***\"}"),
        ("sk-proj-0123456789abcdef0123", "***"),
        ("a hf_0123456789abcdefghij b", "a *** b"),
    ],
)
def test_what_has_the_shape_of_a_secret(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "step 3/10  ocr 0.512  1.2 s", "max_tokens=512 eos_token=</s> json_key=score",
        "api_key_env=JUDGE_KEY is not set",
        "http://far:80/v1 and me@far", "a bearer of news", "the token is wrong or missing",
        "authorization failed", "hf_transfer is not installed; sk-learn", "--token TOKEN", "'tokens': 'abc'",
        "keyword=a monkey=b", "0" * 40,
        "rewards.mine.token_env=MINE: no such variable", "a " * 10_000,
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_redacting_takes_no_time_that_grows_with_the_square() -> None:
    for unit in ("a", "a.", "a_", "=", "://", "'", "Bearer ", "authorization", "api_", "?x"):
        redact(unit * 20_000)


@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_API_KEY",
        "WANDB_API_KEY",
        "HF_TOKEN",
        "MY_SECRET",
        "DB_PASSWORD",
        "JUDGE_KEY",
        "aws_secret_access_key",
    ],
)
def test_variables_with_the_name_of_a_secret_are_learned(name: str) -> None:
    os.environ[name] = SECRET
    learn_environment()
    assert redact(f"<{SECRET}>") == "<***>"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "something"),
        ("SSL_KEY", "/etc/ssl/private"),
        ("A_TOKEN", "short"),
        ("KEYBOARD", "something"),
    ],
)
def test_other_variables_are_not(name: str, value: str) -> None:
    os.environ[name] = value
    learn_environment()
    assert redact(value) == value


def test_logins_on_disk_are_learned(tmp_path: Path) -> None:
    os.environ |= {"HF_HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "HOME": str(tmp_path)}
    os.environ.pop("HF_TOKEN_PATH", None)
    (tmp_path / "token").write_text("of-the-hub-1\n")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password of-wandb-2\n")
    (tmp_path / ".netrc").chmod(0o600)
    os.environ["HTTPS_PROXY"] = "http://me:of%2Dproxy3@far:80"
    learn_environment()
    assert redact("of-the-hub-1 of-wandb-2 of-proxy3 of%2Dproxy3 bWU6b2YtcHJveHkz") == "*** *** *** *** ***"


@pytest.mark.parametrize(
    "path", ["api_key", "judge-api-key", "token", "Authorization", "client_secret", "password"]
)
def test_options_that_are_secrets(path: str) -> None:
    assert is_secret(path, SECRET)
    assert not is_secret(path, "")
    assert not is_secret(path, 3)
    learn_options({"deep": [{path: SECRET}]})
    assert redact(SECRET) == "***"


# ---- the configuration


def secretive() -> list[str]:
    """Overrides with a secret of each kind; the judge's plugin needs not be installed for a tree."""
    return [
        "preset=tiny", "rewards=[colorfulness]",
        f"+rewards.mine={{plugin: colorfulness, api_key: '{SECRET}', deep: [{{password: pass-7}}]}}",
        "+rewards.mine.base_url='http://me:word-8@far/v1'",
        "+rewards.mine.headers={Authorization: 'Bearer bear-9'}",
    ]  # fmt: skip


HELD = (SECRET, "pass-7", "word-8", "bear-9")


def test_config_yaml_holds_references_and_repeats_the_run(tmp_path: Path) -> None:
    config = compose(secretive())
    text = dump(config)
    assert not any(secret in text for secret in HELD)
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert load_resolved(file) == config == compose([], str(file))
    assert differences(load_resolved(file), config) == []
    assert dump(load_resolved(file)) == text


def test_a_reference_is_to_the_users_own_variable() -> None:
    os.environ["MINE_KEY"] = SECRET
    override = "+rewards.mine={plugin: colorfulness, api_key: '${oc.env:MINE_KEY}'}"
    config = compose(["preset=tiny", "rewards=[colorfulness]", override])
    assert config.rewards["mine"].options["api_key"] == SECRET
    assert "api_key: ${oc.env:MINE_KEY}" in dump(config)


def test_repeating_without_the_secret_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump(compose(secretive())))
    del os.environ[f"{references.PREFIX}REWARDS_MINE_OPTIONS_API_KEY"]
    with pytest.raises(ConfigError, match="MARBLE_SECRET_REWARDS_MINE_OPTIONS_API_KEY"):
        load_resolved(tmp_path / "config.yaml")


def test_a_configuration_without_secrets_is_written_as_it_is() -> None:
    assert "oc.env" not in dump(compose(["preset=tiny"]))


# ---- what a run writes


def test_a_runs_folder_and_weights_and_biases_show_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []
    monkeypatch.setattr("marble_cli.run.recorder.WandbRun", lambda *rest: given.append(rest) or Silent())
    config = compose([*secretive(), f"run.dir={tmp_path}"])
    progress = Progress.__new__(Progress)
    progress.step, progress.wandb_id = 0, None
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
    id = None

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


# ---- the command line


def leaky(images: object) -> None:
    """Fails, and tells its key."""
    print(f"printing {SECRET}")
    print(f"warning {SECRET}", file=sys.stderr)
    with socket.create_server(("127.0.0.1", 0)) as listener, httpx.Client(trust_env=False) as client:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client.get(url, headers={"Authorization": f"Bearer {SECRET} \n"})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Run `marble` with arguments and the reward `mine`, which is `leaky`; returns all that it wrote."""
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


def test_what_a_plugin_prints_and_raises_shows_no_secret(run: Callable[..., str], tmp_path: Path) -> None:
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
    assert "zyxw" not in said


def test_standard_streams_hide_secrets_of_whoever_writes() -> None:
    """Prints, warnings, tracebacks, other threads and loggers, in a process of its own."""
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


def test_a_stream_keeps_what_the_other_was(tmp_path: Path) -> None:
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


# ---- rewards elsewhere


@pytest.mark.parametrize("each", [True, False])
def test_a_server_tells_its_clients_no_secret(monkeypatch: pytest.MonkeyPatch, each: bool) -> None:
    from fastapi.testclient import TestClient

    from marble_cli.rewards.api import Batch
    from marble_cli.rewards.elsewhere import protocol
    from marble_cli.rewards.elsewhere.server import Limits, build_app
    from marble_cli.rewards.worker import RewardWorker

    class Mine:
        """Fails, and tells its key."""

        def __init__(self, api_key: str) -> None:
            self.error = RuntimeError(f"not with {api_key}")

        def __call__(self, images: object) -> list[Exception]:
            if each:
                return [self.error]
            raise self.error

    known = {"mine": EntryPoint("mine", "x:y", "marble.rewards")}
    monkeypatch.setattr("marble_cli.rewards.registry.installed", lambda: known)
    monkeypatch.setattr(EntryPoint, "load", lambda entry: Mine)
    settings = RewardConfig(plugin="mine", options={"api_key": SECRET})
    lane = RewardWorker("mine", settings, maker("mine", settings, "cpu"))
    batch = protocol.pack_batch(Batch(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ["a"], [{}]))
    answer = TestClient(build_app({"mine": lane}, {"mine": ""}, None, Limits())).post(
        "/score/mine", content=batch
    )
    lane.close()
    assert answer.status_code == (200 if each else 500)
    assert b"not with ***" in answer.content
    assert SECRET.encode() not in answer.content


BAD_KEYS = [
    f" {SECRET}",
    f"{SECRET} ",
    f"{SECRET}\n",
    f"{SECRET}\r\n",
    "zyxw 98",
    "zyxw\t98",
    "zyxw\x1b98",
    "zyxwé",
    "\ufeffzyxw",
    "zyxw\u2028",
]


@pytest.mark.parametrize("key", [*BAD_KEYS, None])
def test_a_judges_key_is_looked_at_before_anything_is_loaded(key: str | None) -> None:
    """As a dry run and `train` do first; the judge's own check is its plugin's test."""
    os.environ.pop("JUDGE_KEY", None)
    if key is not None:
        os.environ["JUDGE_KEY"] = key
    settings = RewardConfig(plugin="judge", options={"api_key_env": "JUDGE_KEY"})
    for look in (lambda: declare("mine", settings), lambda: maker("mine", settings, "cpu")):
        with pytest.raises(
            ConfigError, match=r"rewards.mine.api_key_env: the environment variable JUDGE_KEY"
        ) as told:
            look()
        assert "zyxw" not in str(told.value)
        assert ("is not set" in str(told.value)) == (key is None)


@pytest.mark.parametrize(
    "token", [f"{SECRET} ", f"{SECRET}\n", f"\t{SECRET}", "zyxwé", "zyxw\x1b98", "zyxw\u200b"]
)
@pytest.mark.parametrize("given", [{}, {"token_env": "OF_MINE"}])
def test_a_servers_token_is_refused_by_the_name_of_its_variable(token: str, given: Mapping[str, Any]) -> None:
    from marble_cli.rewards.elsewhere.client import address

    variable = given.get("token_env", "MARBLE_REWARD_TOKEN")
    os.environ[variable] = token
    with pytest.raises(
        ConfigError, match=f"{variable} must be printable ASCII, with no space at its ends"
    ) as raised:
        address("mine", RewardConfig(plugin="mine", url="http://127.0.0.1:9", **given))
    assert "zyxw" not in str(raised.value)
