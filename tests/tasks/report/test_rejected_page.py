"""The page of rejected inputs shows each with its picture, and nothing a caller sent is markup."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from tasks.rejected import keep, kept
from tasks.report.page import ACTIVE
from tasks.report.rejected_page import MOST_PICTURES, render_rejected, write_rejected
from tests.tasks.test_rejected import pixels, rejection


def test_each_rejection_is_shown_with_its_picture(tmp_path: Path) -> None:
    for number in range(3):
        keep(tmp_path, rejection(number), pixels(seed=number))
    found = kept(tmp_path)
    page = write_rejected(tmp_path, "digits", found)
    text = page.read_text()
    shown = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", text)]
    assert shown == [item.image.read_bytes() for item in found]
    assert text.count("taken for seven (7)</") == 0 and text.count("seven (7)") == 2 * 3
    assert "-0.25, above -0.5" in text and "prod.digits version 1" in text
    # the page is no rejection, and only this user reads it
    assert kept(tmp_path) == found and page.stat().st_mode & 0o077 == 0


def test_what_others_wrote_is_escaped_and_the_page_loads_nothing(tmp_path: Path) -> None:
    keep(tmp_path, rejection(said_class="<script>alert(1)</script>\u202e"), pixels())
    text = render_rejected(None, kept(tmp_path))
    assert "default-src 'none'" in text and "\u202e" not in text
    assert ACTIVE.search(text.partition("<title>")[2].encode()) is None


def test_a_picture_that_is_gone_is_left_out(tmp_path: Path) -> None:
    keep(tmp_path, rejection(), pixels())
    (found,) = kept(tmp_path)
    found.image.unlink()
    assert "<img" not in render_rejected(None, [found])


def test_of_many_the_newest_are_shown(tmp_path: Path) -> None:
    keep(tmp_path, rejection(), pixels())
    text = render_rejected(None, kept(tmp_path) * (MOST_PICTURES + 5))
    assert text.count("<img") == MOST_PICTURES and f"{MOST_PICTURES + 5} kept, the newest {MOST_PICTURES} shown" in text
