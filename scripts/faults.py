"""Try every fault for real (`pytest -m long`) and make the table of docs/explanation/reliability.md of what was measured."""

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
RECORDS = "MARBLE_FAULT_RECORDS"  # tests/faults/conftest.py writes there


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="put the table between the marks of FILE; else print it"
    )
    parser.add_argument(
        "--records", type=Path, metavar="FILE", help="take what was measured before; run nothing"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        records, code = asked.records, 0
        if records is None:
            records = Path(folder) / "records.jsonl"
            records.touch()
            command = [sys.executable, "-m", "pytest", "-m", "long", "--durations=10", "tests"]
            environ = os.environ | {RECORDS: str(records)}
            code = subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode
        rows = [json.loads(line) for line in records.read_text().splitlines()]
    text = f"{table(rows)}\n\n{provenance(rows)}\n"
    if code or asked.output is None:  # what failed is in no document
        print(text)
    else:
        put(text, asked.output)
    return code


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of the records."""
    lines = [
        "| fault | tried | steps lost | outcome | its short form in `make test` |",
        "|---|---:|---:|---|---|",
    ]
    for row in rows:
        lost = "-" if row["lost"] is None else row["lost"]
        short = ", ".join(f"`tests/{name}`" for name in row["short"].split(", "))
        lines.append(f"| {row['fault']} | {row['times']} | {lost} | {row['outcome']} | {short} |")
    return "\n".join(lines)


def provenance(rows: list[dict[str, Any]]) -> str:
    """When, where and how the table was made."""
    minutes = sum(row["seconds"] for row in rows) / 60
    return (
        f"Measured on {max((row['date'] for row in rows), default='no day')} with `make test-faults` on {os.cpu_count()} cores "
        f"({platform.machine()}, no GPU used), Python {platform.python_version()}, torch {torch.__version__}, in {minutes:.0f} minutes."
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
