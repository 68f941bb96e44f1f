"""What a file is by its first bytes, whatever its name says, and what to hand in instead."""

from __future__ import annotations

from vetgate.formats.manifest import Bytes
from vetgate.formats.readers import accepted

ACCEPTED = accepted()
BEGINNING = 512
_ARCHIVE = (
    f"a zip archive, as torch.save, TorchScript, .pt2 and .keras files are; they can carry code. Hand in {ACCEPTED}"
)
_PICKLE = f"a Python pickle, which runs code when it is loaded. Hand in {ACCEPTED}"
_MAGIC = (
    (b"PK\x03\x04", _ARCHIVE),
    (b"PK\x05\x06", _ARCHIVE),
    (b"\x1f\x8b", f"a gzip archive. Hand in {ACCEPTED}, uncompressed"),
    (b"BZh", f"a bzip2 archive. Hand in {ACCEPTED}, uncompressed"),
    (b"\xfd7zXZ\x00", f"an xz archive. Hand in {ACCEPTED}, uncompressed"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive. Hand in {ACCEPTED}, uncompressed"),
    (
        b"\x89HDF\r\n\x1a\n",
        f"an HDF5 file; a Keras .h5 file is of format keras. Hand in {ACCEPTED}",
    ),
    (b"\x93NUMPY", f"a numpy file. Hand in {ACCEPTED}"),
    (b"\x7fELF", f"a program. Hand in {ACCEPTED}"),
    (b"#!", f"a script. Hand in {ACCEPTED}"),
)


def refusal(content: Bytes) -> str | None:
    """Why content that starts like this is refused under any name, or None."""
    data = bytes(content[:BEGINNING])
    for magic, reason in _MAGIC:
        if data.startswith(magic):
            return reason
    # protocols 2 to 5 open with PROTO; the old torch format is a pickle of a magic number
    if data[:1] == b"\x80" and len(data) > 1 and 2 <= data[1] <= 5:
        return _PICKLE
    if data[257:262] == b"ustar":
        return f"a tar archive. Hand in {ACCEPTED}, unpacked"
    if data[4:8] == b"TFL3":
        return f"a TensorFlow Lite file. Hand in {ACCEPTED}"
    return None
