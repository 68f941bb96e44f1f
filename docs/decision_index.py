"""Write docs/decisions/index.md from headings: `python -m docs.decision_index`; --check as in docs.methods."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from docs.generated import settle

PAGE = Path(__file__).parent / "decisions" / "index.md"
HEAD = """# Decisions

Generated from the pages by `make docs`; do not edit. Each says in which situation something was decided, what follows
from it, and what was rejected.

"""


def render() -> str:
    """The whole page."""
    pages = sorted(page for page in PAGE.parent.glob("[0-9]*.md"))
    titles = [page.read_text().splitlines()[0].removeprefix("# ").partition(". ")[2] for page in pages]
    listed = [f"- {page.name[:4]}: [{title}]({page.name})\n" for page, title in zip(pages, titles, strict=True)]
    return HEAD + "".join(listed)


def main(arguments: Sequence[str]) -> int:
    """Write the page, or with --check say whether it is up to date."""
    return settle(PAGE, render(), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
