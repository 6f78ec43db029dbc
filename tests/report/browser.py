"""Open a report in Chromium, within a page of frames that looks at it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def title_of(frames: str, report: str, folder: Path, budget: int) -> str:
    """Open `frames`, whose frames show report.html, and return the title that its script has set.

    Args:
        frames: the outer page.
        report: the text of report.html.
        folder: an empty folder.
        budget: milliseconds of virtual time for scripts.
    """
    (folder / "report.html").write_text(report, encoding="utf-8")
    (folder / "frames.html").write_text(frames, encoding="utf-8")
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files",
            "--enable-logging=stderr", f"--virtual-time-budget={budget}", "--dump-dom",
            (folder / "frames.html").as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    # A request that the page's policy refuses would be an error of the console too.
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None
    return title[1]
