"""The page in Chromium, if there is one: every chart is drawn, nothing fails, nothing is requested."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.report.page import Page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Windows have a least width that is above a phone's; frames have not.
FRAMES = """<!doctype html><title>-</title>
<iframe src="report.html" style="width:400px;height:900px"></iframe>
<iframe src="report.html" style="width:1400px;height:900px"></iframe>
<script>
setTimeout(() => {
  document.title = [...document.querySelectorAll("iframe")].map(({ contentDocument: page }) =>
    `${page.querySelectorAll(".chart svg").length} charts in ${page.documentElement.scrollWidth} pixels`);
}, 15000);
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_charts_are_drawn_without_an_error_and_fit_a_phone(page: Page, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page.source, encoding="utf-8")
    (tmp_path / "frames.html").write_text(FRAMES, encoding="utf-8")
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files",
            "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom",
            (tmp_path / "frames.html").as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    # A request that the page's policy refuses would be an error of the console too.
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    drawn = re.search("<title>(.*?)</title>", done.stdout)
    assert drawn is not None
    charts = len(page.specs)
    assert drawn[1] == f"{charts} charts in 400 pixels,{charts} charts in 1400 pixels"
