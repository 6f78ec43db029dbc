"""Make an environment outside the source tree: marble's wheel, a third party's plugin, and a new one."""

import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fork_server import ForkServer, Program

ROOT = Path(__file__).resolve().parents[2]
PACKED = ("marble_cli", "conf", "pyproject.toml", "README.md", "LICENSE")
SMALL = (
    "preset=tiny", "balance=marble", "rollout.groups=3", "rollout.group_size=4", "rollout.steps=2",
    "rollout.batch_size=12",
    "trainer.micro_batch_size=12", "trainer.times_per_image=1", "trainer.eval_every=0",
    "logging.wandb.mode=disabled",
    *(f"data.sources.{name}.train={name}/test.jsonl" for name in ("general", "text", "compositional")),
)  # fmt: skip

NEW = "blur_free"  # the reward that `marble rewards new` writes
PLUGIN = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "thirdparty-rewards"
version = "1.0"

[project.entry-points."marble.rewards"]
brightness = "thirdparty_rewards:brightness"
flaky = "thirdparty_rewards:Flaky"
broken = "thirdparty_rewards:Broken"
short = "thirdparty_rewards:Short"
silent = "thirdparty_rewards:Silent"
hangs = "thirdparty_rewards:Hangs"
kept = "thirdparty_rewards:kept"
""",
    "thirdparty_rewards.py": '''
"""Rewards as others write them, well and badly; none imports marble."""

import os
import time


def brightness(images, prompts, metadata):
    """How bright a picture is, 0 to 1."""
    return images.float().mean(dim=(1, 2, 3)) / 255


def kept(images, conditions):
    """How little a picture changed, 0 at best."""
    return -(images.float() - conditions.float()).abs().mean(dim=(1, 2, 3))


class Flaky:
    """Raises twice in a row once, and later three times in a row."""

    def __init__(self):
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
        if self.calls in (2, 3, 7, 8, 9):
            raise RuntimeError(f"flaky on call {self.calls}")
        return images.float().mean(dim=(1, 2, 3)).tolist()


class Broken:
    """Works for the preflight and then always raises."""

    def __init__(self, good_calls=1):
        self.left = good_calls

    def __call__(self, images):
        self.left -= 1
        if self.left < 0:
            raise ValueError("the judge is out of order")
        return images.float().mean(dim=(1, 2, 3))


class Short:
    """Forgets the last image."""

    def __call__(self, batch):
        return [0.0] * (len(batch.images) - 1)


class Hangs:
    """Never answers until `marker` exists; the first call makes it. It talks a lot."""

    def __init__(self, marker):
        print("not JSON\\n{}\\n" * 1000, flush=True)
        self.marker = marker

    def __call__(self, images):
        print("x" * 100_000, flush=True)
        if not os.path.exists(self.marker):
            open(self.marker, "w").close()
            time.sleep(3600)
        return [1.0] * len(images)


class Silent:
    """Has nothing to say of any image."""

    def __call__(self, images):
        return [float("nan")] * len(images)
''',
}


@dataclass(frozen=True)
class Environment:
    """A virtual environment whose commands run in `folder`, far from the source tree; in forks if given."""

    python: Path
    folder: Path
    forks: ForkServer | None = None

    def command(self, *arguments: object) -> list[str]:
        return [str(self.python), "-m", "marble_cli", *map(str, arguments)]

    def variables(self) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MARBLE"))}
        return own | {"COLUMNS": "80", "HF_HUB_OFFLINE": "1"}

    def start(self, *arguments: object) -> "subprocess.Popen[str] | Program":
        """Start `marble` with arguments."""
        if self.forks is not None:
            return self.forks.start(["-m", "marble_cli", *arguments], self.variables(), self.folder)
        return subprocess.Popen(
            self.command(*arguments), cwd=self.folder, env=self.variables(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def marble(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        """Run `marble` with arguments to its end."""
        process = self.start(*arguments)
        out, err = process.communicate()
        assert process.returncode is not None
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def made_in(folder: Path) -> Environment:
    """Return the environment that `make_environment` has made in a folder."""
    return Environment(folder / "venv" / "bin" / "python", folder / "work")


def make_environment(folder: Path) -> None:
    """Build the wheel, and install it in an environment that sees the other packages; then plugins.

    They are a third party's, and the one that `marble rewards new` writes, which is installed as it says.
    """
    source, site = folder / "source", folder / "site"
    source.mkdir()
    for name in PACKED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    _python(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", source)
    link_packages(site)
    python = make_venv(folder / "venv", site)
    plugin = folder / "plugin"
    plugin.mkdir()
    for name, text in PLUGIN.items():
        (plugin / name).write_text(text)
    (wheel,) = (folder / "dist").glob("*.whl")
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    _python(python, *install, wheel)
    made = made_in(folder)
    made.folder.mkdir()
    written = made.marble("rewards", "new", NEW)
    assert f"pip install -e marble-reward-{NEW.replace('_', '-')}" in written.stdout, written.stderr
    _python(python, *install, plugin, "--editable", made.folder / f"marble-reward-{NEW.replace('_', '-')}")


def link_packages(site: Path) -> Path:
    """Make a folder of links to all installed packages except marble and its plugins; return it."""
    site.mkdir()
    for package in (
        entry for path in sys.path if path.endswith("site-packages") for entry in Path(path).iterdir()
    ):
        if "marble" not in package.name and package.suffix != ".pth" and not (site / package.name).exists():
            (site / package.name).symlink_to(package)
    return site


def make_venv(folder: Path, site: Path) -> Path:
    """Make a virtual environment with the packages in `site`, pip among them; return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    library = next((folder / "lib").glob("python*")) / "site-packages"
    (library / "others.pth").write_text(f"{site}\n")
    return folder / "bin" / "python"


def _python(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def rows(run: Path) -> list[dict[str, Any]]:
    """Read the complete rows of a run's metrics, without measured times."""
    lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
    timed = ("time/", "throughput/", "balance/solve_seconds")
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(timed)} for line in lines]
