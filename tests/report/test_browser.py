"""The page in Chromium, if there is one: every chart is drawn, nothing fails, nothing is requested."""

from pathlib import Path

from tests.report.browser import NEEDS_CHROMIUM, title_of
from tests.report.page import Page

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


@NEEDS_CHROMIUM
def test_charts_are_drawn_without_an_error_and_fit_a_phone(page: Page, tmp_path: Path) -> None:
    charts = len(page.specs)
    drawn = title_of(FRAMES, page.source, tmp_path, budget=20000)
    assert drawn == f"{charts} charts in 400 pixels,{charts} charts in 1400 pixels"
