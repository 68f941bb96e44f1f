from __future__ import annotations

import sys
import unicodedata

import pytest

from vetgate.errors import Denied, VetgateError
from vetgate.formats.plain_text import escaped, escaped_lines, steering, without_secrets

STRANGE = {
    "a terminal's title": ("a\x1b]0;title\x07b", "a\\x1b]0;title\\x07b"),
    "a cleared screen": ("\x1b[2J", "\\x1b[2J"),
    "NUL": ("a\x00b", "a\\x00b"),
    "C1": ("\x9b31m", "\\x9b31m"),
    "DEL": ("a\x7f", "a\\x7f"),
    "an override": ("B\u202eTSENOH\u202c", "B\\u202eTSENOH\\u202c"),
    "an isolate": ("\u2067x\u2069", "\\u2067x\\u2069"),
    "marks": ("\u200e\u200f\u061c", "\\u200e\\u200f\\u061c"),
    "line separators": ("a\u2028b\x85c", "a\\u2028b\\x85c"),
    "invisible": ("di\u200bgits\ufeff", "di\\u200bgits\\ufeff"),
    "tags": ("a\U000e0041", "a\\U000e0041"),
    "half a character": ("\ud800", "\\ud800"),
}


@pytest.mark.parametrize(("given", "shown"), STRANGE.values(), ids=STRANGE)
def test_what_steers_is_written_out(given: str, shown: str) -> None:
    assert escaped(given) == escaped_lines(given) == shown
    assert escaped(shown) == shown and steering(given) is not None and steering(shown) is None


@pytest.mark.parametrize("text", ["日本 – 光学", "Müller & Co", "नमस्\u200dते", "می\u200cخواهم", "👩\u200d🔬", "a\\x1b"])
def test_what_people_write_stays(text: str) -> None:
    assert escaped(text) == text and steering(text) is None


def test_lines_stay_where_they_may_and_are_written_out_where_one_is_expected() -> None:
    assert escaped("a\n\tb\r") == "a\\n\\tb\\r" and escaped_lines("a\n\tb\r") == "a\n\tb\\r"


def test_no_control_and_no_bidirectional_character_of_unicode_is_missed() -> None:
    bidirectional = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN", "B", "S"}
    joins = {"\u200c", "\u200d"}
    every = (chr(code) for code in range(sys.maxunicode + 1))
    missed = [
        hex(ord(c))
        for c in every
        if (unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(c) in bidirectional)
        and c not in joins
        and steering(c) is None
    ]
    assert missed == []


@pytest.mark.parametrize("kind", [VetgateError, Denied])
def test_an_error_that_quotes_a_stranger_is_one_plain_line(kind: type[VetgateError]) -> None:
    assert str(kind("got \x1b[2J\nPASS")) == "got \\x1b[2J\\nPASS"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:secret@host:5000/x", "http://***@host:5000/x"),
        ("http://user:12secret@host", "http://***@host"),
        ("https://token-secret@host/x", "https://***@host/x"),
        ("postgresql+psycopg2://user:a/secret@b?#secret@host/db", "postgresql+psycopg2://***@host/db"),
        ("http://:secret@host", "http://***@host"),
        ("postgresql://host/db?user=u&password=secret&sslmode=x", "postgresql://host/db?user=u&password=***&sslmode=x"),
        ("https://host/x?access_token=secret", "https://host/x?access_token=***"),
    ],
)
def test_no_secret_of_a_url_is_shown(url: str, shown: str) -> None:
    text = f"expected the registry at {url} to answer, got ({url!r}, {url} ), it is {url}"
    expected = text.replace(url, shown)
    assert without_secrets(text) == escaped(text) == escaped_lines(text) == str(VetgateError(text)) == expected
    assert without_secrets(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "models:/prod.digits@champion",
        "http://127.0.0.1:5000/#/models/prod.digits@champion",
        "http://host:5000, or ask a@b.c",
        "s3://bucket/a@b",
        "file:///home/a@b/store",
        "repo@commit:path",
        "https://host/x?page_token",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_a_long_text_takes_no_long_time() -> None:
    assert len(escaped("://a:" * 100_000)) == 500_000
