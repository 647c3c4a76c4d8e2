"""A hostile text, and what must hold of every page that shows it."""

import re
import xml.etree.ElementTree as ElementTree

HOSTILE = """</style></title><script>alert("a & b")</script>'" onload='x' {{ 7 * 7 }}\x00\x1b[31m\x9b\u202e\ud800"""
"""Tags, quotes, a template expression, control characters and a lone surrogate."""
SHOWN = """</style></title><script>alert("a & b")</script>'" onload='x' {{ 7 * 7 }}\ufffd\ufffd[31m\ufffd\ufffd"""
"""The same text as a page shows it."""


def checked_page(page, *, images):
    """Return a page as a tree. It must be well-formed, refer to nothing outside, and show `images` images."""
    assert page.encode("utf-8").decode("utf-8") == page and not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page
    )
    tree = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    sources = [element.attrib["src"] for element in tree.iter() if "src" in element.attrib]
    assert len(sources) == images and all(re.match("data:image/(png|jpeg);base64,", source) for source in sources)
    assert not [element for element in tree.iter() if element.tag in ("script", "link", "iframe", "object")]
    names = {name for element in tree.iter() for name in element.attrib}
    assert names <= {"lang", "charset", "name", "content", "class", "style", "scope", "alt", "src", "open"}, names
    assert not re.search(r"https?:|url\(|@import", re.sub('src="[^"]*"', "", page))
    return tree


def check_hostile_page(page, *, images):
    """Check a page all of whose texts are `HOSTILE`: it must be shown as text, and change nothing else."""
    tree = checked_page(page, images=images)
    assert SHOWN in tree.find(".//h1").text and SHOWN in tree.find(".//title").text
    assert SHOWN in "".join(tree.find("body").itertext())
    assert "49" not in "".join(tree.find(".//h1").itertext())
