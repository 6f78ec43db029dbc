"""Where metrics go: the configuration comes first, then W&B's variables, settings files and logins."""

from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.enums import WandbMode
from marble_cli.config.schema import WandbConfig
from marble_cli.errors import ConfigError
from marble_cli.metrics.wandb_destination import WandbDestination, resolve_destination

Decide = Callable[..., WandbDestination]
KEY = {"WANDB_API_KEY": "0" * 40}
OWN = {"WANDB_BASE_URL": "https://wandb.example.org:8443/"}


@pytest.fixture
def decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Decide:
    """Return `resolve_destination` for a user with only the given files and variables."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)

    def run(
        environ: dict[str, str] | None = None,
        *,
        mode: str = "auto",
        project: str | None = None,
        entity: str | None = None,
        **files: str,
    ) -> WandbDestination:
        places = {
            "netrc": home / ".netrc",
            "system": home / ".config/wandb/settings",
            "workspace": here / "wandb/settings",
        }
        for name, text in files.items():
            places[name].parent.mkdir(parents=True, exist_ok=True)
            places[name].write_text(text)
        variables = {"HOME": str(home)} | (environ or {})
        return resolve_destination(WandbConfig(WandbMode[mode], project, entity), variables)

    return run


@pytest.mark.parametrize(
    ("told", "mode"),
    [
        ("online", "online"),
        ("offline", "offline"),
        ("disabled", "disabled"),
        ("dryrun", "offline"),
        ("run", "online"),
        ("shared", "shared"),
    ],
)
@pytest.mark.parametrize("logged_in", [True, False])
def test_wandb_mode_variable_decides_the_mode(decide: Decide, told: str, mode: str, logged_in: bool) -> None:
    found = decide({"WANDB_MODE": told} | (KEY if logged_in else {}))
    assert (found.mode, found.reason) == (mode, "WANDB_MODE")


@pytest.mark.parametrize("told", ["", "onlin", "Offline", "true"])
def test_unknown_mode_is_refused(decide: Decide, told: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"WANDB_MODE='{told}' is no mode of W&B\. Expected online, offline"
    ):
        decide({"WANDB_MODE": told})
    with pytest.raises(ConfigError, match="is no mode"):
        decide({"WANDB_MODE": told}, mode="offline")  # W&B itself would fail at the variable
    assert decide({"WANDB_MODE": told}, mode="disabled").mode == "disabled"


@pytest.mark.parametrize("address", ["", "wandb.example.org", "ftp://wandb.example.org", "https://"])
def test_invalid_address_is_refused(decide: Decide, address: str) -> None:
    with pytest.raises(ConfigError, match=r"WANDB_BASE_URL=.* is no address of W&B"):
        decide({"WANDB_BASE_URL": address})


@pytest.mark.parametrize(
    ("environ", "netrc", "mode"),
    [
        ({}, "", "offline"),
        (KEY, "", "online"),
        ({"WANDB_API_KEY": ""}, "", "offline"),
        ({"WANDB_IDENTITY_TOKEN_FILE": "/token"}, "", "online"),
        ({}, "machine api.wandb.ai login user password key", "online"),
        ({}, "machine github.com login user password key", "offline"),
        ({}, "machine api.wandb.ai login user", "offline"),  # no password
        ({}, "default login anonymous password me@example.org", "offline"),
        ({}, "machine", "offline"),  # damaged
        (OWN, "machine wandb.example.org:8443 login user password key", "online"),
        (OWN, "machine wandb.example.org login user password key", "offline"),  # without the service's port
        (OWN, "machine api.wandb.ai login user password key", "offline"),  # another host
        (OWN | KEY, "", "online"),
    ],
)
def test_login_decides_if_no_mode_is_set(
    decide: Decide, environ: dict[str, str], netrc: str, mode: str
) -> None:
    found = decide(environ, netrc=netrc)
    assert found.mode == mode
    assert found.service == (
        "https://wandb.example.org:8443" if OWN.items() <= environ.items() else "https://api.wandb.ai"
    )


def test_netrc_variable_names_the_file(decide: Decide, tmp_path: Path) -> None:
    (tmp_path / "logins").write_text("machine api.wandb.ai login user password key")
    found = decide({"NETRC": str(tmp_path / "logins")})
    assert (found.mode, found.reason) == ("online", f"login for api.wandb.ai in {tmp_path / 'logins'}")


def test_project_and_team_come_from_the_first_source(decide: Decide) -> None:
    assert (decide().project, decide().entity) == ("marble", None)
    system = "[default]\nproject = system\nentity = them\nbase_url = https://wandb.example.org\n"
    assert (decide(system=system).project, decide().entity) == ("system", "them")
    assert decide().service == "https://wandb.example.org"
    assert decide(workspace="[default]\nproject = workspace\n").project == "workspace"
    told = {"WANDB_PROJECT": "variable", "WANDB_ENTITY": "us", "WANDB_BASE_URL": "http://localhost:8080"}
    found = decide(told)
    assert (found.project, found.entity, found.service) == ("variable", "us", "http://localhost:8080")
    assert found.ignored == ()
    assert decide({"WANDB_PROJECT": ""}).project == "marble"
    found = decide(told, project="mine", entity="me")
    assert (found.project, found.entity) == ("mine", "me")


@pytest.mark.parametrize("mode", ["offline", "disabled", "online"])
def test_settings_file_decides_the_mode(decide: Decide, mode: str) -> None:
    found = decide(KEY if mode != "online" else {}, system=f"[default]\nmode = {mode}\n")
    assert found.mode == mode
    assert found.reason.startswith("mode in ")
    assert decide({"WANDB_MODE": "shared"}).mode == "shared"  # variables have priority over files


@pytest.mark.parametrize("text", ["no section", "[other]\nmode = offline", "[default]\nmode", "\x00\xff"])
def test_damaged_settings_file_is_ignored(decide: Decide, text: str) -> None:
    assert decide(KEY, workspace=text).mode == "online"


@pytest.mark.parametrize(
    ("environ", "asked", "said"),
    [
        (
            {"WANDB_MODE": "offline"},
            {"mode": "online"},
            ["mode=online is set, so WANDB_MODE=offline is not followed"],
        ),
        (
            {"WANDB_MODE": "online"},
            {"mode": "disabled"},
            ["mode=disabled is set, so WANDB_MODE=online is not followed"],
        ),
        ({"WANDB_MODE": "dryrun"}, {"mode": "offline"}, []),  # both mean offline
        ({"WANDB_PROJECT": "a"}, {"project": "b"}, ["project=b is set, so WANDB_PROJECT=a is not followed"]),
        ({"WANDB_PROJECT": "a"}, {"project": "a"}, []),
        (
            {"WANDB_ENTITY": "a", "WANDB_PROJECT": "c"},
            {"entity": "b"},
            ["entity=b is set, so WANDB_ENTITY=a is not followed"],
        ),
    ],
)
def test_configuration_overrides_with_a_message(
    decide: Decide, environ: dict[str, str], asked: dict[str, str], said: list[str]
) -> None:
    found = decide(environ, **asked)
    assert found.ignored == tuple(f"logging.wandb.{words}" for words in said)
    if "mode" in asked:
        assert (found.mode, found.reason) == (asked["mode"], "logging.wandb.mode")


def test_missing_home_is_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as without HOME and passwd entry
    assert resolve_destination(WandbConfig(WandbMode.auto, None, None), {}).mode == "offline"


def test_destination_is_described_in_words(decide: Decide) -> None:
    assert str(decide({"WANDB_MODE": "disabled"})) == "disabled (WANDB_MODE)"
    assert str(decide(KEY | {"WANDB_ENTITY": "us"})) == (
        "online (WANDB_API_KEY), project us/marble at https://api.wandb.ai"
    )
    assert str(decide()) == "offline (no login for api.wandb.ai), project marble at https://api.wandb.ai"
