"""Pages of reports as a test reads them."""

from __future__ import annotations

from html.parser import HTMLParser

EVIL = '</script><script>alert(1)</script><img src=x onerror=alert(1)>"\' onload="alert(1)'


class Page(HTMLParser):
    """Elements as (tag, attributes, text directly in them), in the order in which they begin."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("img", "input", "meta"):
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.elements[self.open[-1]][2].append(data)

    def find(self, tag: str, of_class: str = "") -> list[tuple[dict[str, str | None], str]]:
        return [
            (attributes, " ".join("".join(text).split()))
            for found, attributes, text in self.elements
            if found == tag and (not of_class or of_class in (attributes.get("class") or "").split())
        ]
