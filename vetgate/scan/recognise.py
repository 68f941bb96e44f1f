"""What bytes are, by themselves and whatever they are called, and the reader for each kind."""

from __future__ import annotations

from collections.abc import Callable

from vetgate.scan.archives.compressed import is_zlib, read_compressed
from vetgate.scan.archives.tar_archive import is_tar, read_tar
from vetgate.scan.archives.zip_archive import read_members
from vetgate.scan.archives.zip_directory import LOCAL, find_end, zip_members
from vetgate.scan.inspection import Inspection, Place
from vetgate.scan.keras_config import HDF5, read_hdf5
from vetgate.scan.numpy_file import MAGIC as NUMPY
from vetgate.scan.numpy_file import read_npy
from vetgate.scan.onnx_scan import may_be_onnx, read_onnx
from vetgate.scan.pickles.streams import Probed, probe, read_pickles
from vetgate.scan.png_file import MAGIC as PNG
from vetgate.scan.png_file import read_png
from vetgate.scan.rules import MASQUERADE, POLYGLOT, PROGRAM, UNKNOWN
from vetgate.scan.safetensors_scan import is_safetensors, read_safetensors
from vetgate.scan.source import Part, Source
from vetgate.scan.texts import as_text, read_text
from vetgate.scan.torch_legacy import is_torch_legacy, read_torch_legacy
from vetgate.scan.torch_zip import is_torch, read_torch_zip

Reader = Callable[[Source, Place], object]
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x5d\x00\x00": "lzma",
}
PROGRAMS = {
    b"\x7fELF": "an ELF program or library",
    b"MZ": "a program or library of Windows",
    b"\xfe\xed\xfa\xce": "a program of macOS",
    b"\xfe\xed\xfa\xcf": "a program of macOS",
    b"\xce\xfa\xed\xfe": "a program of macOS",
    b"\xcf\xfa\xed\xfe": "a program of macOS",
    b"\xca\xfe\xba\xbe": "a program of macOS or a class of Java",
    b"\x00asm": "a WebAssembly module",
    b"!<arch>\n": "a library of machine code",
}
# of known formats that are not read, the name
UNREAD_MAGIC = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "a zstd stream",
    b"\x04\x22\x4d\x18": "an lz4 stream",
    b"GGUF": "a GGUF file",
    b"SQLite format 3\x00": "an SQLite database",
}
ENDINGS = {
    ".safetensors": ("safetensors",),
    ".onnx": ("ONNX",),
    ".pt": ("zip", "pickle"),
    ".pth": ("zip", "pickle"),
    ".ckpt": ("zip", "pickle"),
    ".pkl": ("pickle",),
    ".pickle": ("pickle",),
    ".npy": ("numpy",),
    ".npz": ("zip",),
    ".keras": ("zip",),
    ".zip": ("zip",),
    ".h5": ("HDF5",),
    ".hdf5": ("HDF5",),
    ".json": ("text",),
    ".yaml": ("text",),
    ".yml": ("text",),
    ".txt": ("text",),
    ".md": ("text",),
    ".csv": ("text",),
    ".png": ("PNG",),
    ".jpg": ("JPEG",),
}
HDF5_STARTS = [512 << shift for shift in range(24)]


def inspect(path: str, source: Source) -> Inspection:
    """Inspect a file: what was found stands in what is returned; no error is raised."""
    inspection = Inspection(path, recognise, source.size)
    place = Place(inspection)
    place.guarded(lambda: recognise(source, place))
    return inspection


def recognise(source: Source, at: Place) -> None:
    """Inspect bytes as what they are; what they could be taken for beside that is a finding."""
    _recognise(source, at, ())


def recognise_data(source: Source, at: Place) -> None:
    """The same of bytes that are said to be numbers, which may begin as an ONNX file does: that is one byte."""
    _recognise(source, at, ("", "ONNX"))


def _recognise(source: Source, at: Place, numbers: tuple[str, ...]) -> None:
    if source.size == 0:
        return
    probed = probe(source)
    kind, read = kind_of(source, probed)
    _tell_what_else(source, at, kind, probed)
    if kind not in numbers:
        read(source, at)


def _tell_what_else(source: Source, at: Place, kind: str, probed: Probed) -> None:
    """Tell of a name that says something else, and of other formats that the same bytes are."""
    ending = "." + at.name.rpartition(".")[2].lower()
    if kind not in ENDINGS.get(ending, (kind,)):
        at.found(MASQUERADE, f"{kind or 'something unknown'} under the name {at.name}")
    # as a pickle, a zip archive begins with a persistent id that no loader takes
    if kind not in ("pickle", "text", "zip") and probed.runs:
        at.found(POLYGLOT, f"{kind or 'bytes'} that can be read as a pickle, which would run code")
        at.guarded(lambda: read_pickles(source, at))
    if kind != "zip":
        _hidden_zip(source, at)
    if kind != "HDF5" and any(_starts(source, HDF5, start) for start in HDF5_STARTS if start < source.size):
        at.found(POLYGLOT, "an HDF5 file after other bytes")


def kind_of(source: Source, probed: Probed) -> tuple[str, Reader]:
    """What bytes are, in a word, and the function that reads them."""
    head = source.read(0, min(32, source.size))
    for magic, name in PROGRAMS.items():
        if head.startswith(magic):
            return "program", _telling_program(name)
    for magic, name in UNREAD_MAGIC.items():
        if head.startswith(magic):
            return name, _telling_unknown(name)
    for magic, kind in COMPRESSED.items():
        if head.startswith(magic) and (kind != "lzma" or len(head) > 13):
            return kind, _reading_compressed(kind)
    if head.startswith((LOCAL, b"PK\x05\x06")):
        return "zip", _read_zip
    if head.startswith(HDF5):
        return "HDF5", read_hdf5
    if head.startswith(PNG):
        return "PNG", read_png
    if head.startswith(NUMPY):
        return "numpy", read_npy
    if is_torch_legacy(source):
        return "pickle", read_torch_legacy
    if is_safetensors(source):
        return "safetensors", read_safetensors
    if is_tar(source):
        return "tar", read_tar
    return _without_magic(source, probed, head)


def _without_magic(source: Source, probed: Probed, head: bytes) -> tuple[str, Reader]:
    whole = probed.end == source.size and not probed.findings
    marked = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if marked or whole or probed.calls or (probed.imports and probed.end is not None):
        return "pickle", read_pickles
    # words one a line can look like an import, such as cast, iron: what neither calls nor comes to an end is text
    if (text := as_text(source)) is not None:
        return "text", lambda source, at: read_text(text, at)
    if probed.imports or probed.end is not None:
        return "pickle", read_pickles
    if is_zlib(source):
        return "zlib", _reading_compressed("zlib")
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG", _telling_unknown("a JPEG image")
    if may_be_onnx(source):
        return "ONNX", read_onnx
    return "", _telling_unknown("bytes of no known format")


def _reading_compressed(kind: str) -> Reader:
    return lambda source, at: read_compressed(source, at, kind)


def _read_zip(source: Source, at: Place) -> None:
    members = zip_members(source, at)
    if is_torch(members):
        read_torch_zip(source, members, at)
    else:
        read_members(source, members, at)


def _telling_program(name: str) -> Reader:
    return lambda source, at: at.found(PROGRAM, name)


def _telling_unknown(name: str) -> Reader:
    return lambda source, at: at.found(UNKNOWN, name)


def _starts(source: Source, magic: bytes, at: int) -> bool:
    return source.size >= at + len(magic) and source.read(at, len(magic)) == magic


def _hidden_zip(source: Source, at: Place) -> None:
    """Tell of an archive at the end of something else: readers of zip begin at the end."""
    if source.size < 22 or (end := find_end(source, exact=False)) is None:
        return
    size = int.from_bytes(source.read(end + 12, 4), "little")
    offset = int.from_bytes(source.read(end + 16, 4), "little")
    if size < 46 or size + offset > end or not _starts(source, b"PK\x01\x02", end - size):
        return
    at.found(POLYGLOT, "a zip archive at the end of other bytes")
    start = end - size - offset
    at.inside("(zip)", Part(source, start, source.size - start) if _starts(source, LOCAL, start) else source)
