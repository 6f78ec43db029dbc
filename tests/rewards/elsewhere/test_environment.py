"""A distribution is installed into an isolated environment as it is installed here."""

import json
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from marble_cli.rewards.elsewhere.environment import _same_distribution


@pytest.mark.parametrize(
    ("direct", "expected"),
    [
        (None, ["judges[serve]==1.5"]),
        ({"url": "file://{folder}", "dir_info": {"editable": True}}, ["--editable", "{folder}[serve]"]),
        ({"url": "file://{folder}", "dir_info": {}}, ["{folder}[serve]"]),
        ({"url": "file://{folder}/judges.whl", "archive_info": {}}, ["{folder}/judges.whl[serve]"]),
        ({"url": "file:///no/longer/there", "dir_info": {"editable": True}}, ["judges[serve]==1.5"]),
        (
            {"url": "https://example.org/judges", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            ["judges[serve] @ git+https://example.org/judges@abc"],
        ),
    ],
)
def test_pip_installs_a_distribution_from_its_origin(
    direct: dict[str, Any] | None, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a source"
    folder.mkdir()
    (folder / "judges.whl").touch()
    site, checkout = tmp_path / "site", tmp_path / "checkout"
    for path, info, file in (
        (site, "judges-1.5.dist-info", "METADATA"),
        (checkout, "judges.egg-info", "PKG-INFO"),  # it comes first and knows nothing
    ):
        (path / info).mkdir(parents=True)
        (path / info / file).write_text("Metadata-Version: 2.1\nName: judges\nVersion: 1.5\n")
        monkeypatch.syspath_prepend(str(path))
    if direct is not None:
        url = direct["url"].format(folder=str(folder).replace(" ", "%20"))
        (site / "judges-1.5.dist-info" / "direct_url.json").write_text(json.dumps({**direct, "url": url}))
    found = _same_distribution(distribution("judges"), "[serve]")
    assert found == [word.format(folder=folder) for word in expected]
