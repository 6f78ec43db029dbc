"""`redact` hides learned values and patterns of secrets, and nothing else."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.redaction import is_secret, learn, learn_environment, learn_options, redact
from tests.redaction.samples import ODD, SECRET


@pytest.mark.parametrize(
    "form",
    [str, repr, ascii, json.dumps, lambda s: repr(s.encode()), lambda s: f"<{s}>", lambda s: repr([s])],
)
@pytest.mark.parametrize(
    "secret", [SECRET, ODD, f" {SECRET}", f"{SECRET}\r\n", "tr\x1bs\x00x", "пароль", "ab cd"]
)
def test_learned_value_is_hidden_in_every_quoted_form(secret: str, form: Callable[[str], str]) -> None:
    learn(secret)
    text = redact(f"before {form(secret)} after")
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert "***" in text
    for part in (secret, repr(secret)[1:-1], secret.strip()):
        assert part not in text


def test_nested_secrets_are_hidden_completely() -> None:
    learn("abcd")
    learn("abcd-efgh")
    assert redact("abcd abcd-efgh") == "*** ***"


def test_short_or_empty_secrets_change_no_text() -> None:
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
def test_pattern_of_a_secret_is_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "step 3/10  ocr 0.512  1.2 s",
        "max_tokens=512 eos_token=</s> json_key=score",
        "api_key_env=JUDGE_KEY is not set",
        "http://far:80/v1 and me@far",
        "a bearer of news",
        "the token is wrong or missing",
        "authorization failed",
        "hf_transfer is not installed; sk-learn",
        "--token TOKEN",
        "'tokens': 'abc'",
        "keyword=a monkey=b",
        "0" * 40,
        "rewards.mine.token_env=MINE: no such variable",
        "a " * 10_000,
    ],
)
def test_text_without_secrets_is_unchanged(text: str) -> None:
    assert redact(text) == text


def test_redacting_takes_linear_time() -> None:
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
def test_variables_named_like_secrets_are_learned(name: str) -> None:
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
def test_other_variables_are_not_learned(name: str, value: str) -> None:
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
def test_secret_options_are_learned(path: str) -> None:
    assert is_secret(path, SECRET)
    assert not is_secret(path, "")
    assert not is_secret(path, 3)
    learn_options({"deep": [{path: SECRET}]})
    assert redact(SECRET) == "***"
