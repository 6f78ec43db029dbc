"""Try every fault for real (`pytest -m long`) and make the table of docs/reliability.md of what was measured."""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

BEGIN = "<!-- What stands between these lines is made by scripts/faults.py. -->"
END = "<!-- End of what scripts/faults.py makes. -->"
ROOT = Path(__file__).resolve().parents[1]
RECORDS = "MARBLE_FAULT_RECORDS"  # tests/faults/conftest.py writes there


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="put the table between the marks of FILE; else print it"
    )
    parser.add_argument(
        "--records", type=Path, metavar="FILE", help="keep what was measured there, as JSON lines"
    )
    parser.add_argument("tests", nargs="*", help="further arguments for pytest, after --")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        records = (asked.records or Path(folder) / "records.jsonl").resolve()
        records.write_text("")
        command = ["-m", "pytest", "-m", "long", "--durations=10", *asked.tests]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=os.environ | {RECORDS: str(records)}, check=False
        )
        minutes = (time.monotonic() - began) / 60
        rows = [json.loads(line) for line in records.read_text().splitlines()]
    text = f"{table(rows)}\n\n{provenance(minutes)}\n"
    if done.returncode or asked.output is None:  # what failed is in no document
        print(text)
    else:
        put(text, asked.output)
    return done.returncode


def table(rows: list[dict[str, object]]) -> str:
    """Markdown of the records."""
    lines = [
        "| fault | tried | steps lost | outcome | its short form in `make test` |",
        "|---|---:|---:|---|---|",
    ]
    for row in rows:
        lost = "-" if row["lost"] is None else row["lost"]
        short = ", ".join(f"`tests/{name}`" for name in str(row["short"]).split(", "))
        lines.append(f"| {row['fault']} | {row['times']} | {lost} | {row['outcome']} | {short} |")
    return "\n".join(lines)


def provenance(minutes: float) -> str:
    """When, where and how the table was made."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return (
        f"Measured on {today} with `make test-faults` on {os.cpu_count()} cores ({platform.machine()}, no GPU used), Python "
        f"{platform.python_version()}, torch {torch.__version__}, in {minutes:.0f} minutes."
    )


def put(text: str, file: Path) -> None:
    """Replace what stands between the marks of `file`.

    Raises:
        ValueError: it has no marks.
    """
    before, begin, rest = file.read_text().partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file} has no lines {BEGIN!r} and {END!r}")
    file.write_text(f"{before}{begin}\n{text}\n{end}{after}")


if __name__ == "__main__":
    sys.exit(main())
