"""Pages of `ipu-trainer report`, read as a browser would."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """What a browser makes of a page: tags, attributes and the text of each section."""

    VOID = ("meta", "img", "br")

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.ids, self.open = set(), [], [], []
        self.text, self.sections, self._section = "", {}, ""
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "section":
            self._section = dict(attrs)["id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style",):
            self.text += data
            self.sections[self._section] = self.sections.get(self._section, "") + data


def checked_page(file):
    """The page in file, which must be whole, self-contained, without scripts and under 5 MB."""
    content = file.read_bytes()
    assert len(content) < 5_000_000
    html = content.decode("utf-8")
    page = Page(html)
    assert not page.tags & {"script", "iframe", "object", "embed", "link", "form", "base", "foreignobject"}
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name == "src":
            assert value.startswith("data:image/jpeg;base64,"), value[:40]
        if name in ("href", "xlink:href"):
            assert value.startswith("#"), value[:60]
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"url\((?!#)", html)
    assert 'name="viewport"' in html and "prefers-color-scheme" in html
    return page
