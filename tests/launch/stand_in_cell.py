"""Stand in for `python -m marble_cli train --config-name FILE --resume HOW`: the seed says what happens."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import FrameType

FAILS, KILLED, STOPS, HANGS = 1, 2, 7, 8  # seeds; others finish


def main(arguments: list[str]) -> int:
    assert arguments[:4] == ["-m", "marble_cli", "train", "--config-name"], arguments
    text = Path(arguments[4]).read_text()
    folder = Path(re.findall("^  dir: (.*)$", text, re.MULTILINE)[0])
    seed = int(re.findall(r"^  seed: (\d+)$", text, re.MULTILINE)[0])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "started").open("a") as file:
        file.write(arguments[6] + "\n")
    print("output of", seed, flush=True)
    if seed == FAILS:
        sys.stderr.write("marble: a warning\nmarble: reward ocr failed on 9 images\nand a detail\n")
        return 1
    if seed == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed in (STOPS, HANGS):
        wait_for_a_signal(folder, seed)
    row = {"step": 5, "phase": "train", "reward/a/mean": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return 0


def wait_for_a_signal(folder: Path, seed: int) -> None:
    """Count the signals that arrive in the file `caught`; end with the first unless the cell hangs."""
    caught = []

    def stop(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        (folder / "caught").write_text(str(len(caught)))
        if seed == STOPS:
            sys.exit(130 if number == signal.SIGINT else 143)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
    (folder / "ready").touch()
    while True:
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
