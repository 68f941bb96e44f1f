"""What unpacks to far more than it is stops its reader neither in time nor in memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import time
import zipfile
import zlib
from collections.abc import Callable

import pytest

from tests.vetgate.scan.assembled import zipped
from vetgate.scan.inspection import FREE_BYTES, Inspection
from vetgate.scan.recognise import inspect
from vetgate.scan.rules import RULES
from vetgate.scan.source import InMemory

LARGE = b"\0" * (80 << 20)
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 9),
    "bz2": bz2.compress,
    "xz": lambda data: lzma.compress(data, preset=1),
    "zlib": lambda data: zlib.compress(data, 9),
    "zip": lambda data: zipped({"a": data}, zipfile.ZIP_DEFLATED),
}


def scanned(data: bytes) -> tuple[Inspection, set[str]]:
    begun = time.process_time()
    inspection = inspect("bomb", InMemory(data))
    assert time.process_time() - begun < 2
    return inspection, {RULES[finding.rule].name for finding in inspection.findings}


@pytest.mark.parametrize("kind", PACKED)
def test_a_bomb_is_stopped(kind: str) -> None:
    inspection, rules = scanned(PACKED[kind](LARGE))
    assert "Bomb" in rules and inspection.findings


def test_a_bomb_of_bombs_is_stopped_by_one_count() -> None:
    inner = PACKED["gzip"](LARGE[: 6 << 20])
    inspection, rules = scanned(zipped({f"{i}.gz": inner for i in range(200)}))
    assert "Bomb" in rules and inspection.unpacked < 3 * FREE_BYTES


def test_nesting_and_members_end_somewhere() -> None:
    nested = b"text\n"
    for _ in range(40):
        nested = gzip.compress(nested)
    assert "Limit" in scanned(nested)[1]
    assert "Limit" in scanned(many(60_000))[1]


def many(count: int) -> bytes:
    """An archive that says to have very many members."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a", b"")
    data = made.getvalue()
    return data[:-14] + count.to_bytes(2, "little") * 2 + data[-10:]


def test_members_that_overlap_are_told() -> None:
    data = zipped({"a": b"text\n", "b": b"text\n"})
    second = data.rindex(b"PK\x01\x02")
    overlapping = data[: second + 42] + bytes(4) + data[second + 46 :]
    assert "Disagreement" in scanned(overlapping)[1]
