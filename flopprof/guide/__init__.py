"""The guide: Markdown pages that travel with the package, for machines without a network."""

import difflib
from pathlib import Path

from flopprof.errors import UsageError

FOLDER = Path(__file__).parent
INDEX = "README"


def topics() -> list[str]:
    """Return the names of the pages, sorted; the index is not one of them."""
    return sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != INDEX)


def page(topic: str = INDEX) -> str:
    """Return the Markdown of the page on `topic`; by default the index of all pages.

    Raises:
        UsageError: There is no such page; the remedy names those that are near.
    """
    name = topic.lower().removesuffix(".md")
    if topic == INDEX or name in topics():
        return (FOLDER / f"{topic if topic == INDEX else name}.md").read_text(encoding="utf-8")
    raise UsageError(f"the guide has no page {topic!r}", remedy=_remedy(name))


def pages_that_mention(words: str) -> list[str]:
    """Return the topics of the pages in which `words` stand, whatever their case."""
    return [topic for topic in topics() if words.lower() in page(topic).lower()]


def title(topic: str) -> str:
    """Return the heading of the page on `topic`."""
    return page(topic).partition("\n")[0].lstrip("# ")


def _remedy(name: str) -> str:
    """Return which page may have been meant: one of a similar name, or that speaks of it."""
    if near := difflib.get_close_matches(name, topics(), n=1):
        return f"flopprof guide {near[0]}"
    if mentioning := pages_that_mention(name):
        return f"it is spoken of in: {', '.join(mentioning)}; flopprof guide {mentioning[0]}"
    return "flopprof guide, for the list of pages"
