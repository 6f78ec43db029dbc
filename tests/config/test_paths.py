"""Every path of a configuration is absolute, with `~` replaced, and one that no disk can hold is told."""

import os
import pwd
from pathlib import Path

import pytest

from marble_cli.checkpoint import store
from marble_cli.config.compose import compose, dump, load_resolved
from marble_cli.config.schema import RunConfig
from marble_cli.errors import CheckpointError, ConfigError, RequestError
from marble_cli.files import check_writable
from marble_cli.paths import NO_HOME, absolute, ensure_home, expand, home
from marble_cli.rewards.elsewhere import environment

BUILT_IN = "rewards=[colorfulness,compressibility]"
ME = pwd.getpwuid(os.getuid())

pytestmark = pytest.mark.usefixtures("at_home")


def composed(*overrides: str) -> RunConfig:
    return compose([BUILT_IN, "run.dir=here", *overrides])


def value(config: RunConfig, key: str) -> object:
    node: object = config
    for part in key.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    return node


PLACES = [
    "run.dir",
    "model.path",
    "model.clip",
    "model.embedding_cache",
    "data.root",
    "data.sources.text.hub",
]


@pytest.mark.parametrize("key", PLACES)
def test_the_home_is_meant_by_every_path(key: str, at_home: Path) -> None:
    assert value(composed(f"{key}=~/a (b), ü"), key) == str(at_home / "a (b), ü")
    assert value(composed(f"{key}=~"), key) == str(at_home)
    assert value(composed(f"{key}=~{ME.pw_name}/x"), key) == str(Path(ME.pw_dir) / "x")
    assert value(composed(f"{key}=./~x"), key) == str(Path.cwd() / "~x")
    assert value(composed(f"{key}=/a/~/b"), key) == "/a/~/b"
    with pytest.raises(
        ConfigError, match=rf"^{key}=~nobody-here/x: there is no user 'nobody-here'.*\./~nobody-here/x"
    ):
        composed(f"{key}=~nobody-here/x")


@pytest.mark.parametrize("key", PLACES)
def test_paths_are_absolute_once(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    config = composed(f"{key}=there")
    assert value(config, key) == str(tmp_path / "there")
    assert value(composed(f"{key}=../x"), key) == str(tmp_path / "../x")
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_resolved(file) == config
    assert compose([], str(file)) == config


def test_ids_of_the_hub_and_the_embedded_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    config = composed("model.clip=openai/clip-vit-large-patch14", "data.sources.text.hub=owner/name")
    assert (config.model.path, config.data.root) == ("tiny", "tiny")
    assert config.model.clip == "openai/clip-vit-large-patch14"
    assert config.data.sources["text"].hub == "owner/name"
    assert composed("model.path=stabilityai/sd3").model.path == "stabilityai/sd3"
    (tmp_path / "stabilityai" / "sd3").mkdir(parents=True)
    assert composed("model.path=stabilityai/sd3").model.path == str(tmp_path / "stabilityai" / "sd3")


def test_options_of_rewards_that_are_written_as_paths_are_paths(tmp_path: Path, at_home: Path) -> None:
    (tmp_path / "models" / "clip").mkdir(parents=True)
    options = "b: ./y, c: models/clip, d: [../z], e: owner/name, f: .., g: 'How good?', h: {i: '~/j'}, k: 1.5"
    mine = composed(f"+rewards.mine={{plugin: colorfulness, {options}}}", "rewards.mine.a=~/x").rewards[
        "mine"
    ]
    assert mine.options == {
        "b": str(tmp_path / "y"),
        "c": str(tmp_path / "models" / "clip"),
        "d": [str(tmp_path / "../z")],
        "e": "owner/name",
        "f": "..",
        "g": "How good?",
        "h": {"i": str(at_home / "j")},
        "k": 1.5,
        "a": str(at_home / "x"),
    }


def test_prompt_files_stay_below_their_root(at_home: Path) -> None:
    source = composed("data.sources.text.train=a/b.txt", "data.sources.text.test=~/c.txt").data.sources[
        "text"
    ]
    assert (source.train, source.test) == ("a/b.txt", str(at_home / "c.txt"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x" * 300, "xxx... has 300 bytes, and a folder's or file's name at most 255"),
        ("ok/" + "ü" * 128 + "/ok", "has 256 bytes"),
        ("~/" + "x" * 256, "has 256 bytes"),
        ("a/" * 2000, "has 4000 bytes. Expected a path of at most"),
        ("a\nb", "'a\\nb': holds the character U+000A"),
        ("a\rb", "U+000D"),
        ("a\x1b[31mb", "U+001B"),
        ("a\x00b", "U+0000"),
        ("a\u2028b", "U+2028"),
        ("a\udcffb", "U+DCFF. Expected a path without line ends and other control characters, in UTF-8"),
    ],
)
def test_names_that_no_disk_can_hold_are_told(text: str, said: str) -> None:
    for key in ("run.dir", "model.embedding_cache", "data.root"):
        with pytest.raises(ConfigError) as error:
            composed(f"{key}={text}")
        assert str(error.value).startswith(f"{key}=")
        assert said in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300
    with pytest.raises(RequestError, match="--output"):
        expand("--output ", text)


def test_a_locale_without_the_letters_of_a_path_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsencode", lambda text: text.encode("ascii"))
    with pytest.raises(RequestError, match=r"^run\.dir='\\xfc': this locale .* Set LC_ALL=C\.UTF-8"):
        expand("run.dir=", "ü")


def test_odd_names_that_a_disk_can_hold_are_paths(tmp_path: Path) -> None:
    for name in ("[red]x[/]", "a,b", "ünï", "x" * 255, "a b", "模" * 85, "'q'", "a:b", "#x", "%s{}"):
        config = composed(f"run.dir={name}" if not name.startswith("'") else f'run.dir="{name}"')
        assert config.run.dir == str(tmp_path / name)
        check_writable(Path(config.run.dir), "run.dir=")


def test_a_folder_behind_a_link_that_leads_nowhere_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for folder in (tmp_path / "link", tmp_path / "link/below"):
        with pytest.raises(RequestError, match=r"^--output .* cannot be written: No such file or directory"):
            check_writable(folder, "--output ")


@pytest.mark.parametrize("name", ["a\nb", "a\x00b", "a\tb", "\x1b[31m"])
def test_a_name_of_a_run_is_a_line(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^run\.name='.*expected a line of text without control characters"
    ):
        composed(f"run.name={name}")


@pytest.mark.parametrize("spec", ["~/runs/x", "~nobody-here/x"])
def test_a_checkpoint_may_be_named_by_the_home(spec: str) -> None:
    with pytest.raises((CheckpointError, RequestError), match="neither a checkpoint|there is no user"):
        store.resolve(spec)


# No home


def test_the_home_is_known_by_the_variable_then_by_the_password_file(
    at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home() == at_home
    for unset in (lambda: monkeypatch.setenv("HOME", ""), lambda: monkeypatch.delenv("HOME")):
        unset()
        assert home() == Path(ME.pw_dir)
        ensure_home(Path("spare"))
        assert os.environ["HOME"] == ME.pw_dir
        assert NO_HOME not in os.environ


@pytest.mark.usefixtures("homeless")
def test_without_a_home_the_runs_folder_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home() is None
    config = composed("model.embedding_cache=~/.cache/marble")
    assert config.model.embedding_cache == str(tmp_path / "here" / "home" / ".cache" / "marble")
    monkeypatch.setenv("HOME", "")
    ensure_home(tmp_path / "here" / "home")
    ensure_home(tmp_path / "again")
    assert os.environ["HOME"] == str(tmp_path / "here" / "home")
    assert Path.home() == tmp_path / "here" / "home"
    assert [record.message for record in caplog.records] == [
        "there is no home: HOME is not set, and the password file does not name one. Using "
        f"{tmp_path / 'here' / 'home'}"
    ]


@pytest.mark.usefixtures("homeless")
def test_what_would_outlive_the_run_is_refused_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"^run\.dir=~/x: there is no home: .* Set HOME"):
        compose([BUILT_IN, "run.dir=~/x"])
    with pytest.raises(RequestError, match="there is no home"):
        absolute("--output ", "~/x")
    with pytest.raises(ConfigError, match="MARBLE_HOME=FOLDER"):
        environment.root()
    monkeypatch.setenv("HOME", "")
    ensure_home(tmp_path / "borrowed")
    with pytest.raises(ConfigError, match="MARBLE_HOME=FOLDER"):
        environment.root()
    monkeypatch.setenv("MARBLE_HOME", str(tmp_path))
    assert environment.root() == tmp_path / "rewards"
