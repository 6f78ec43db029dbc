"""Fine-tune the embedded `tiny` model on five rewards at once, then show what changed.

    python -m scripts.demo [--seed 0] [--directory runs/demo-0] [OVERRIDE ...]

Ends with a table that compares base and trained model on held-out prompts, and with the paths of two
pictures and of a report to open in a browser. Running the script again resumes an unfinished run.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from marble_cli.metrics.figures import curves

EVAL_PROMPTS = 400  # held-out prompts per source


def run_marble(*arguments: object) -> int:
    """Run a command of marble and return its exit code."""
    return subprocess.run([sys.executable, "-m", "marble_cli", *map(str, arguments)], check=False).returncode


def run_demo(directory: Path, seed: int, overrides: list[str]) -> int:
    """Train, evaluate, draw and report; return the exit code of the first command that failed, else 0."""
    settings = ("preset=tiny", "run.name=demo", f"run.dir={directory}", f"trainer.seed={seed}")
    if code := run_marble("train", *settings, *overrides):
        return code
    print(f"comparing base and trained model on {EVAL_PROMPTS} held-out prompts per source", flush=True)
    options = ("--against", "base", "--output", directory)
    if code := run_marble("eval", directory, *options, f"trainer.eval_prompts={EVAL_PROMPTS}"):
        return code
    print(f"curves:   {curves(directory / 'metrics.jsonl', directory / 'curves.png')}")
    print("report:   ", end="", flush=True)
    return run_marble("report", directory)


def main(arguments: list[str]) -> int:
    """Run the demonstration that the command line asks for; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (%(default)s)")
    parser.add_argument("--directory", type=Path, help="folder of the run (runs/demo-SEED)")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="settings, as for `marble train`")
    options = parser.parse_args(arguments)
    directory = options.directory or Path(f"runs/demo-{options.seed}")
    return run_demo(directory, options.seed, options.overrides)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
