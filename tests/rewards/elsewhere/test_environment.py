"""A distribution is installed into an isolated environment as it is installed here."""

import json
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from marble_cli.errors import RequestError, RewardError
from marble_cli.rewards.elsewhere.environment import _same_distribution, install


@pytest.mark.parametrize(
    ("direct", "expected"),
    [
        (None, ["judges[serve]==1.5"]),
        ({"url": "file://{folder}", "dir_info": {"editable": True}}, ["--editable", "{folder}[serve]"]),
        ({"url": "file://{folder}", "dir_info": {}}, ["{folder}[serve]"]),
        ({"url": "file://{folder}/judges.whl", "archive_info": {}}, ["{folder}/judges.whl[serve]"]),
        (
            {"url": "file://{folder}/judges.zip", "archive_info": {}, "subdirectory": "in"},
            ["judges[serve] @ file://{quoted}/judges.zip#subdirectory=in"],
        ),
        (
            {"url": "https://example.org/judges.whl", "archive_info": {"hash": "sha256=00"}},
            ["judges[serve] @ https://example.org/judges.whl"],
        ),
        (
            {"url": "https://example.org/judges", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            ["judges[serve] @ git+https://example.org/judges@abc"],
        ),
        (
            {"url": "file://{folder}", "vcs_info": {"vcs": "git", "commit_id": "abc"}, "subdirectory": "in"},
            ["judges[serve] @ git+file://{quoted}@abc#subdirectory=in"],
        ),
        (
            {"url": "file:///no/longer/there", "dir_info": {"editable": True}},
            "judges was installed here from /no/longer/there, which is gone. Say where it is: --from",
        ),
    ],
)
def test_pip_installs_a_distribution_from_its_origin(
    direct: dict[str, Any] | None, expected: list[str] | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a source"
    folder.mkdir()
    quoted = str(folder).replace(" ", "%20")
    for name in ("judges.whl", "judges.zip"):
        (folder / name).touch()
    site, checkout = tmp_path / "site", tmp_path / "checkout"
    for path, info, file in (
        (site, "judges-1.5.dist-info", "METADATA"),
        (checkout, "judges.egg-info", "PKG-INFO"),  # it comes first and knows nothing
    ):
        (path / info).mkdir(parents=True)
        (path / info / file).write_text("Metadata-Version: 2.1\nName: judges\nVersion: 1.5\n")
        monkeypatch.syspath_prepend(str(path))
    if direct is not None:
        url = direct["url"].format(folder=quoted)
        (site / "judges-1.5.dist-info" / "direct_url.json").write_text(json.dumps({**direct, "url": url}))
    if isinstance(expected, str):
        with pytest.raises(RequestError, match=re.escape(expected)):
            _same_distribution(distribution("judges"), "[serve]")
        return
    found = _same_distribution(distribution("judges"), "[serve]")
    assert found == [word.format(folder=folder, quoted=quoted) for word in expected]


def test_nothing_stays_of_an_environment_that_could_not_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ensure_venv(folder: Path) -> str:
        folder.mkdir(exist_ok=True)
        return "false"  # pip fails

    monkeypatch.setenv("MARBLE_HOME", str(tmp_path))
    monkeypatch.setattr("marble_cli.rewards.elsewhere.environment._ensure_venv", ensure_venv)
    with pytest.raises(RewardError, match="pip could not install"):
        install("judge", str(tmp_path))
    assert list((tmp_path / "rewards").iterdir()) == []
    (venv := tmp_path / "rewards" / "judge" / "venv").mkdir(parents=True)
    with pytest.raises(RewardError, match="pip could not install"):
        install("judge", str(tmp_path))
    assert venv.is_dir(), "one that was there is left to be repaired"
