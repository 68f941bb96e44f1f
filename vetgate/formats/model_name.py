"""What a model may be called: plain lower-case names that cannot be taken for another one's."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from vetgate.formats.plain_text import ONE_LINE

MODEL_NAME = re.compile(r"(?!.*(?:prod|thirdparty)\.)[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9_-])?")
RULE = (
    "1 to 63 of a-z, 0-9, '.', '_' and '-', that begins with a letter or digit, does not end in a dot, and holds "
    "neither 'prod.' nor 'thirdparty.'"
)


def alike(name: str, registered: Iterable[str]) -> str | None:
    """The first registered model that reads like thirdparty.<name> or prod.<name> and is another.

    Those are equal under NFKC and case folding, apart from what cannot be seen. Letters of other alphabets stay apart.
    """
    own = {_folded(model): model for model in (f"thirdparty.{name}", f"prod.{name}")}
    return next((other for other in registered if own.get(_folded(other), other) != other), None)


def _folded(model: str) -> str:
    seen = unicodedata.normalize("NFKC", ONE_LINE.sub("", model))
    return unicodedata.normalize("NFKC", seen.casefold()).strip(" .")
