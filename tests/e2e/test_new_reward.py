"""The files that `marble rewards new` writes are a complete plugin."""

import json
import subprocess
from pathlib import Path

from tests.e2e.environment import Environment, make_venv


def test_a_new_plugin_installs_and_passes_in_a_clean_environment(fresh: Environment, tmp_path: Path) -> None:
    root = fresh.folder.parent
    python = make_venv(tmp_path / "venv", root / "site")
    clean = Environment(python, tmp_path)
    (wheel,) = (root / "dist").glob("*.whl")

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [str(python), *map(str, arguments)],
            cwd=tmp_path, env=clean.variables(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(*install, wheel)
    said = run("-m", "marble_cli", "rewards", "new", "blur_free")
    assert "pip install -e marble-reward-blur-free" in said
    run(*install, "--editable", "marble-reward-blur-free")
    report = json.loads(run("-m", "marble_cli", "rewards", "check", "blur_free", "--json"))
    assert report["ok"]
    outcomes = {check["name"]: check["outcome"] for check in report["checks"]}
    assert set(outcomes.values()) == {"pass", "skipped"}
    assert [name for name, outcome in outcomes.items() if outcome == "skipped"] == ["same on another device"]
    assert "passed" in run("-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "marble-reward-blur-free")
    table = clean.marble("rewards", "check", "blur_free", "rewards.blur_free.gamma=3")
    assert table.returncode == 0, table.stderr
    assert max(map(len, table.stdout.splitlines())) <= 80
    assert (
        "blur_free"
        in clean.marble("train", "preset=tiny", "rewards=[blur_free,compressibility]", "--dry-run").stdout
    )
