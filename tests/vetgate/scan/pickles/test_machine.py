"""The reader of pickles sees what a loader would make, and refuses what it would call."""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

import pytest

from tests.vetgate.scan.assembled import imported, text
from vetgate.scan.pickles.machine import MAX_OPCODES, Machine
from vetgate.scan.pickles.nodes import Listed, Mapped, Raw, Tupled
from vetgate.scan.pickles.opcodes import OPCODES
from vetgate.scan.rules import ScanRule
from vetgate.scan.source import BrokenFileError, InMemory


class Read:
    """A pickle that was read: its value, or why it was not, and the names of the rules that it breaks."""

    def __init__(self, data: bytes) -> None:
        self.told: list[tuple[str, str]] = []
        self.machine = Machine(InMemory(data), 0, self.tell)
        self.value: Any = None
        self.broken = ""
        try:
            self.value = self.machine.run()
        except BrokenFileError as error:
            self.broken = str(error)

    def tell(self, rule: ScanRule, evidence: str) -> None:
        self.told.append((rule.name, evidence))

    @property
    def rules(self) -> list[str]:
        return [name for name, _ in self.told]


def plain(node: Any, data: bytes) -> Any:
    """The Python value that a node of data stands for."""
    if isinstance(node, Listed):
        items = [plain(item, data) for item in node.items]
        return {"list": list, "set": set, "frozenset": frozenset}[node.kind](items)
    if isinstance(node, Tupled):
        return tuple(plain(item, data) for item in node.items)
    if isinstance(node, Mapped):
        return {plain(key, data): plain(value, data) for key, value in node.pairs}
    if isinstance(node, Raw):
        return node.text.encode("latin-1") if node.text is not None else data[node.at : node.at + node.size]
    return node


@pytest.mark.parametrize("protocol", range(6))
def test_data_is_read_as_it_was_written(protocol: int) -> None:
    value = {"a": [1, -1, 255, 256, 2**70, 1.5, None, True, "ü\n'\\"], (1, "b"): {1, 2}, "c": b"\x00\xff", "d": ()}
    data = pickle.dumps(value, protocol)
    read = Read(data)
    assert (read.told, read.broken) == ([], "")
    got = plain(read.value, data)
    assert got["a"] == value["a"] and got["d"] == () and got["c"] == b"\x00\xff"
    if protocol >= 4:
        assert got[(1, "b")] == {1, 2}


def test_every_opcode_of_python_is_known_with_its_argument() -> None:
    """The table is ours; that of the standard library, which reads nothing here, agrees with it."""
    assert set(OPCODES) == {ord(opcode.code) for opcode in pickletools.opcodes}


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (imported("os", "system") + text("x") + b"\x85R", "PickleCall"),
        (imported("somewhere", "anything"), "PickleGlobal"),
        (imported("torch.nn.modules.linear", "Linear") + b")\x81", "PickledModule"),
        (b"\x82\x01", "PickleUnresolved"),
        (text("os") + b"K\x01\x93", "PickleUnresolved"),
        (imported("collections", "OrderedDict") + b"K\x01\x85R", "PickleMisuse"),
        (imported("collections", "OrderedDict") + b")\x81", "PickleMisuse"),
        (imported("collections", "OrderedDict"), "PickleMisuse"),
        (b"]" + imported("torch", "FloatStorage") + b"a", "PickleMisuse"),
        (b"}}b", "PickleMisuse"),
        (text("weights") + b"Q", "PickleObjects"),
        (b"\x97", "PickleObjects"),
    ],
)
def test_what_is_not_data_is_told(body: bytes, rule: str) -> None:
    read = Read(b"\x80\x04" + body + b".")
    assert rule in read.rules and read.broken == ""


def test_what_is_allowed_stays_silent_in_its_place_only() -> None:
    ordered = imported("collections", "OrderedDict") + b")R"
    assert Read(b"\x80\x02" + ordered + b".").told == []
    assert Read(b"\x80\x02" + ordered + b"}" + text("_metadata") + b"}sb.").told == []
    assert Read(b"\x80\x02" + ordered + b"}" + text("keys") + b"}sb.").rules == ["PickleMisuse"]
    assert Read(b"\x80\x02" + imported("torch", "float32") + b".").told == []
    assert Read(b"\x80\x02" + imported("torch", "float32") + b")R.").rules == ["PickleMisuse"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"N",
        b".",
        b"0.",
        b"N0.",
        b"h\x00.",
        b"\x00.",
        b"t.",
        b"X\xff\xff\xff\xffa",
        b"I1x\n.",
        b"cos\nsystem",
        b"\x80\x09N.",
    ],
)
def test_what_breaks_the_loader_is_broken(data: bytes) -> None:
    read = Read(data)
    assert read.broken or read.rules == ["PickleBroken"]


def test_work_and_memory_are_bounded() -> None:
    assert "opcodes" in Read(b"N0" * MAX_OPCODES).broken
    assert "memo" in Read(b"N" + b"r\xff\xff\xff\xff.").broken
    assert Read(b"\x8e" + b"\xff" * 8).broken
    assert Read(b"]" * 100_000 + b"a" * 99_999 + b".").told == []
