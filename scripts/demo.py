"""Fine-tune the embedded `tiny` model on five rewards at once, then show what changed.

    python scripts/demo.py [--seed 0] [--directory runs/demo-0] [OVERRIDE ...]

Ends with the table of base against trained on held-out prompts and names the two pictures that it drew. Running it
again continues an unfinished run.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from marble_cli.metrics.figures import curves

JUDGED_PROMPTS = 400  # held-out prompts a source


def marble(*arguments: object) -> int:
    return subprocess.run([sys.executable, "-m", "marble_cli", *map(str, arguments)], check=False).returncode


def main(directory: Path, seed: int, overrides: list[str]) -> int:
    trained = marble(
        "train", "preset=tiny", "run.name=demo", f"run.dir={directory}", f"trainer.seed={seed}", *overrides
    )
    if trained:
        return trained
    print(f"judging base and trained on {JUDGED_PROMPTS} held-out prompts a source", flush=True)
    judged = marble(
        "eval",
        directory,
        "--against",
        "base",
        "--output",
        directory,
        f"trainer.eval_prompts={JUDGED_PROMPTS}",
    )
    if judged:
        return judged
    print(f"curves:   {curves(directory / 'metrics.jsonl', directory / 'curves.png')}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="the run's folder; runs/demo-SEED if not given")
    parser.add_argument("overrides", nargs="*", help="any override of marble train")
    options = parser.parse_args()
    directory = options.directory or Path(f"runs/demo-{options.seed}")
    sys.exit(main(directory, options.seed, options.overrides))
