"""Text of strangers, shown as what it is: characters that steer a terminal or reorder what is read are written out.

Those are the controls C0, DEL and C1, the bidirectional controls, separators of lines and paragraphs, and characters
that cannot be seen. What joins letters in Persian, in Indic scripts and in emoji (U+200C, U+200D) is left as it is.
Whatever is shown passes here, so here passwords and tokens in URLs are taken out too.
"""

from __future__ import annotations

import re

STEERING = (
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional marks, embeddings, overrides, isolates
    "\u2028\u2029"  # line and paragraph separators
    "\u00ad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"  # invisible
    "\ud800-\udfff\ufffe\uffff"  # no characters at all
)
ONE_LINE = re.compile(f"[{STEERING}]")
LINES = re.compile(f"(?![\n\t])[{STEERING}]")
# before the host of a URL, where a password may hold anything and digits alone are a port; or among its parameters
SECRET = re.compile(
    r"""(?<=://)(?:[^\s/?#@:]{1,1000}(?=@)|[^\s/?#@:]{0,1000}:(?!\d+(?:[/,;"'?#)\s]|$))\S{0,1000}(?=@))"""
    r"""|(?<=[?&])(\w{0,40}(?:password|token|secret)\w{0,40}=)[^\s&"']+"""
)


def steering(text: str) -> str | None:
    """The first character of a text that may not be in it, written out, or None."""
    found = ONE_LINE.search(text)
    return None if found is None else _written(found)


def steering_line(text: str) -> tuple[int, str] | None:
    """Of a text of lines and tabs, the first such character: its line, from 1, and it written out; or None."""
    found = LINES.search(text)
    return None if found is None else (text.count("\n", 0, found.start()) + 1, _written(found))


def escaped(text: str) -> str:
    """The text on one line, each steering character written as Python writes it, such as \\x1b or \\u202e."""
    return without_secrets(ONE_LINE.sub(_written, text))


def escaped_lines(text: str) -> str:
    """As `escaped`, but what is on several lines, or has tabs, stays so."""
    return without_secrets(LINES.sub(_written, text))


def without_secrets(text: str) -> str:
    """The text with *** for what stands before the host of each URL in it, and for passwords in its parameters."""
    return SECRET.sub(r"\g<1>***", text)


def _written(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
