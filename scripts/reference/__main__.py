"""Write the pages of docs/reference that are made from the code: `make reference`."""

from pathlib import Path

from scripts.reference import cli_page, configuration_page, metrics_page

DOCS = Path(__file__).resolve().parents[2] / "docs" / "reference"
PAGES = {
    "configuration.md": configuration_page.render,
    "cli.md": cli_page.render,
    "metrics.md": metrics_page.render,
}


def main() -> None:
    """Write every page."""
    for name, render in PAGES.items():
        (DOCS / name).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
