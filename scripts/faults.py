"""Try every fault for real (`pytest -m long`) and write the table of docs/explanation/reliability.md.

python -m scripts.faults [--output FILE.md] [--records FILE]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

BEGIN = "<!-- What stands between these lines is made by scripts/faults.py. -->"
END = "<!-- End of what scripts/faults.py makes. -->"
ROOT = Path(__file__).resolve().parents[1]
RECORDS = "MARBLE_FAULT_RECORDS"  # environment variable: the file that tests/faults/conftest.py writes to

Rows = list[dict[str, Any]]


def measure(records: Path) -> int:
    """Run the long tests, which append a JSON line per fault to `records`; return pytest's exit code."""
    records.touch()
    command = [sys.executable, "-m", "pytest", "-m", "long", "--durations=10", "tests"]
    environment = os.environ | {RECORDS: str(records)}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def read_records(records: Path) -> Rows:
    """Read what the tests recorded."""
    return [json.loads(line) for line in records.read_text().splitlines()]


def fault_table(rows: Rows) -> str:
    """Return the records as a table in Markdown."""
    lines = [
        "| fault | tried | steps lost | outcome | its short form in `make test` |",
        "|---|---:|---:|---|---|",
    ]
    for row in rows:
        lost = "-" if row["lost"] is None else row["lost"]
        short = ", ".join(f"`tests/{name}`" for name in row["short"].split(", "))
        lines.append(f"| {row['fault']} | {row['times']} | {lost} | {row['outcome']} | {short} |")
    return "\n".join(lines)


def provenance(rows: Rows) -> str:
    """Say when, where and how the records were measured."""
    minutes = sum(row["seconds"] for row in rows) / 60
    latest = max((row["date"] for row in rows), default="no day")
    return (
        f"Measured on {latest} with `make test-faults` on {os.cpu_count()} cores ({platform.machine()}, no "
        f"GPU used), Python {platform.python_version()}, torch {torch.__version__}, in {minutes:.0f} "
        "minutes."
    )


def around_marks(page: Path) -> tuple[str, str]:
    """Return what `page` has until the line `BEGIN`, and from the line `END` on.

    Raises:
        ValueError: the page lacks one of these lines.
        OSError: the page cannot be read.
    """
    before, begin, rest = page.read_text().partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no lines {BEGIN!r} and {END!r}; add both where the table belongs")
    return before + begin, end + after


def replace_between_marks(text: str, page: Path) -> None:
    """Replace the part of `page` between the lines `BEGIN` and `END`; errors are those of `around_marks`."""
    before, after = around_marks(page)
    page.write_text(f"{before}\n{text}\n{after}")


def main(arguments: list[str]) -> int:
    """Measure the faults and publish the table; return pytest's exit code.

    After a failure the table is only printed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scripts.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.md",
        help="put the table between the marks of this file, instead of printing it",
    )
    parser.add_argument(
        "--records", type=Path, metavar="FILE", help="use the records of an earlier run, and run no test"
    )
    options = parser.parse_args(arguments)
    if options.records and not options.records.is_file():
        parser.error(f"--records {options.records} does not exist")
    if options.output:
        try:  # before the half hour that the faults take
            around_marks(options.output)
        except (OSError, ValueError) as error:
            parser.error(f"--output {options.output}: {error}")
    with tempfile.TemporaryDirectory() as folder:
        records = options.records or Path(folder) / "records.jsonl"
        code = 0 if options.records else measure(records)
        rows = read_records(records)
    text = f"{fault_table(rows)}\n\n{provenance(rows)}\n"
    if code or options.output is None:
        print(text)
    else:
        replace_between_marks(text, options.output)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
