"""Read a report back: its elements, texts and addresses."""

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "img", "input", "link", "br"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """The elements of a page in order, each with the text that is directly inside it."""

    source: str
    elements: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[Element] = []
        self.feed(self.source)
        assert self.open == [], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1].text += data

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    @property
    def specs(self) -> list[dict[str, Any]]:
        """The charts, as Vega-Lite reads them."""
        scripts = self.all("script")
        return [json.loads(s.text) for s in scripts if s.attributes.get("type") == "application/json"]

    @property
    def words(self) -> str:
        """All text but scripts and style, with single spaces."""
        parts = [element.text for element in self.elements if element.tag not in ("script", "style")]
        return " ".join(" ".join(parts).split())

    def row(self, *beginning: str) -> list[str]:
        """Return the cells of the first table row that begins so."""
        cells: list[str] = []
        for element in [*self.elements, Element("tr", {})]:
            if element.tag == "tr":
                if cells[: len(beginning)] == list(beginning):
                    return cells
                cells = []
            elif element.tag in ("th", "td"):
                cells.append(element.text)
        raise AssertionError(f"no row begins with {beginning}")
