"""The files that `marble rewards new` writes are a complete plugin.

They are written, installed and tested by interpreters of their own; marble's commands that then use them are
forks of one that has imported marble.
"""

import json
import subprocess
from contextlib import closing
from pathlib import Path

from tests.e2e.environment import Environment, make_venv
from tests.fork_server import start_server


def test_a_new_plugin_installs_and_passes_in_a_clean_environment(fresh: Environment, tmp_path: Path) -> None:
    root = fresh.folder.parent
    python = make_venv(tmp_path / "venv", root / "site")
    clean = Environment(python, tmp_path)
    (wheel,) = (root / "dist").glob("*.whl")

    def interpreted(*arguments: object) -> str:
        done = subprocess.run(
            [str(python), *map(str, arguments)],
            cwd=tmp_path, env=clean.variables(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    interpreted(*install, wheel)
    said = interpreted("-m", "marble_cli", "rewards", "new", "blur_free")
    assert "pip install -e marble-reward-blur-free" in said
    interpreted(*install, "--editable", "marble-reward-blur-free")
    with closing(start_server(python, clean.variables(), tmp_path)) as forks:

        def run(*arguments: object) -> str:
            program = forks.start(arguments, clean.variables(), tmp_path)
            out, err = program.communicate(120)
            assert program.returncode == 0, out + err
            return out

        report = json.loads(run("-m", "marble_cli", "rewards", "check", "blur_free", "--json"))
        assert report["ok"]
        outcomes = {check["name"]: check["outcome"] for check in report["checks"]}
        assert set(outcomes.values()) == {"pass", "skipped"}
        assert [name for name, outcome in outcomes.items() if outcome == "skipped"] == [
            "same on another device"
        ]
        options = ("-p", "no:cacheprovider", "-W", "error")
        assert "passed" in interpreted("-m", "pytest", *options, "marble-reward-blur-free")
        table = run("-m", "marble_cli", "rewards", "check", "blur_free", "rewards.blur_free.gamma=3")
        assert max(map(len, table.splitlines())) <= 80
        rewards = "rewards=[blur_free,compressibility]"
        assert "blur_free" in run("-m", "marble_cli", "train", "preset=tiny", rewards, "--dry-run")
