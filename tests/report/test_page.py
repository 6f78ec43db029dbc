"""The page as a whole: offline, escaped, small, and true to the run."""

import base64
import hashlib
import re
from pathlib import Path

from marble_cli.report.page import report
from tests.report.conftest import EVIL, REWARDS, Maker, evaluation, training
from tests.report.page import Page

LARGEST = 3 * 2**20  # bytes beside the pictures


def test_no_element_has_an_address_outside_the_file(page: Page) -> None:
    addresses = [
        (element.tag, value)
        for element in page.elements
        for name, value in element.attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href", "style") and value
    ]
    assert addresses
    for tag, value in addresses:
        assert value.startswith(("data:image/webp;base64,", "#", "--ink: var(--run-")), (tag, value[:80])
    assert not {"link", "iframe", "object", "embed", "base"} & {element.tag for element in page.elements}
    (style,) = page.all("style")
    assert not re.search(r"url\(|@import|https?:", style.text)
    for spec in page.specs:
        assert "url" not in str(spec.get("data", "")) + str(spec.get("layer", ""))


def test_the_browser_is_told_to_permit_no_request_and_only_these_scripts(page: Page) -> None:
    (policy,) = [e.attributes["content"] for e in page.all("meta") if "http-equiv" in e.attributes]
    assert policy is not None
    assert policy.startswith(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    )
    programs = [script.text for script in page.all("script") if "type" not in script.attributes]
    assert len(programs) == 2
    for program in programs:
        digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1]


def test_prompts_and_log_lines_stay_text(page: Page) -> None:
    (first, second) = [e.text for e in page.all("p") if e.attributes.get("class") == "prompt"]
    assert (first, second) == (f"prompt 0 {EVIL}", f"prompt 1 {EVIL}")
    assert page.row("2026-01-02 03:04:07")[2].endswith(EVIL)
    assert {f"After training: prompt 0 {EVIL}"} <= {e.attributes.get("alt") for e in page.all("img")}
    assert not [name for element in page.elements for name in element.attributes if name.startswith("on")]


def test_names_of_rewards_and_runs_stay_text(make_run: Maker) -> None:
    names = ("a<b>&\"'", "<script>alert(1)")
    rows = [
        evaluation(0, rewards=names),
        training(1, names),
        training(2, names),
        evaluation(2, rewards=names),
    ]
    folder = make_run("<i>run", rows)
    (folder / "config.yaml").unlink()
    page = Page(report([folder]))
    assert page.row(names[0])[0] == names[0]
    assert not page.all("b")
    assert not page.all("i")
    assert "<i>run" in page.words
    assert len([s for s in page.all("script") if "type" not in s.attributes]) == 2
    titles = {spec["description"].split(".")[0] for spec in page.specs}
    assert names[1] in titles


def test_every_chart_has_a_description_and_its_values(page: Page) -> None:
    figures = page.all("figure")
    assert len(figures) == len(page.specs) > 12
    assert all(len(spec["description"]) > 20 for spec in page.specs)
    assert all(spec["width"] == "container" for spec in page.specs)
    assert page.row("0", "5")[:2] == ["0", "5"]  # step and mean of the first evaluation


def test_controls_are_labelled_and_wide_tables_can_be_scrolled_by_keyboard(page: Page) -> None:
    assert all(e.attributes.get("aria-label") for e in page.all("input"))
    assert {e.attributes["type"] for e in page.all("input")} == {"range"}
    regions = [e for e in page.all("div") if e.attributes.get("class") == "scroll"]
    assert regions
    assert all(e.attributes["tabindex"] == "0" and e.attributes["aria-label"] for e in regions)
    assert all("alt" in e.attributes for e in page.all("img"))
    (html,) = page.all("html")
    assert html.attributes["lang"] == "en"
    assert "prefers-color-scheme: dark" in page.all("style")[0].text


def test_the_same_run_gives_the_same_page_however_often_it_is_named(run: Path, page: Page) -> None:
    assert report([run, run / ".." / run.name]) == page.source


def test_long_runs_of_many_rewards_stay_small(make_run: Maker) -> None:
    names = tuple(f"reward_{k}" for k in range(5))
    folders = []
    for place in range(2):
        rows = [training(step, names) for step in range(1, 1001)]
        rows += [evaluation(step, rewards=names) for step in range(0, 1001, 20)]
        folders.append(make_run(f"long-{place}", rows))
        (folders[-1] / "config.yaml").unlink()
    source = report(folders)
    assert len(source.encode()) < LARGEST
    steps = [row["step"] for row in Page(source).specs[1]["datasets"]["rows"]]
    assert {0, 1000} <= set(steps)


def test_a_hidden_secret_and_paths_of_the_machine_are_not_shown(make_run: Maker, tmp_path: Path) -> None:
    secret = "sk-proj-" + "a1B2" * 12
    rows = [training(1), training(2)]
    log = f"2026-01-02 03:04:05,678 WARNING {tmp_path / 'mine' / 'skipped' / 'x'}: key {secret}\n"
    folder = make_run("mine", rows, f"data.root={tmp_path}", log=log)
    source = report([folder])
    assert str(tmp_path) not in source
    assert secret not in source
    assert REWARDS[0] in source
