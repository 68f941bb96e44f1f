"""Byte-level inspection of a submission: every member understood to its last byte, or the whole refused."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from vetgate.errors import NotUnderstood
from vetgate.formats.manifest import MAX_BYTES, MAX_FILES, Bytes, open_plain
from vetgate.formats.readers import format_of
from vetgate.formats.sniff import ACCEPTED, refusal
from vetgate.formats.submission import FILE, Submission

TEXTS = re.compile(r"(README|LICEN[CS]E|NOTICE|CITATION)(\.(md|txt|rst|cff))?", re.IGNORECASE)
MAX_TEXT = 1 << 20


def inspect_bytes(directory: Path, submission: Submission) -> dict[str, Bytes]:
    """Inspect every file in `directory`; the bytes of the model and of the files that belong to it, by name.

    They are mapped where the format takes that: nobody may write to the directory as long as they are in use.
    Raises NotUnderstood with what to hand in instead.
    """
    known = format_of(submission)
    names = _members(directory)
    if submission.model not in names:
        raise NotUnderstood(f"expected the model file {submission.model!r}, got only {names}; add it to the submission")
    members: dict[str, Bytes] = {}
    for name in names:
        if name == FILE:
            continue
        model = name == submission.model
        part = not model and TEXTS.fullmatch(name) is None and known.belongs(name)
        data = read_model_file(directory, name, submission) if part or model else read_member(directory, name)
        reason = None if part or (model and known.sniff(data)) else refusal(data)
        if reason is None and model and not known.sniff(data):
            reason = f"something else. Hand in {ACCEPTED}"
        if reason is not None:
            raise NotUnderstood(f"expected {_expected(name, submission)} in {name}, got {reason}")
        if model or part:
            members[name] = data
        else:
            _inspect_text(name, bytes(data))
    inspect_model(members, submission)
    return members


def inspect_model(members: Mapping[str, Bytes], submission: Submission) -> None:
    """Inspect the bytes of the model file, and of those that belong to it, against what `submission` says of it."""
    check_not_empty(members[submission.model], submission)
    format_of(submission).inspect(members, submission)


def check_not_empty(data: Bytes, submission: Submission) -> None:
    """Raise NotUnderstood for a model file without a byte."""
    if not data:
        raise NotUnderstood(f"expected a model in {submission.model}, got an empty file; hand in {ACCEPTED}")


def read_member(directory: Path, name: str) -> bytes:
    """The bytes of one plain file of a submission; refuses links and files that are too large."""
    with _opened(directory, name) as given, os.fdopen(os.dup(given), "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _too_large(name)
    return data


def read_model_file(directory: Path, name: str, submission: Submission) -> Bytes:
    """As `read_member`, but mapped where the format of the submission takes that."""
    if not format_of(submission).mapped:
        return read_member(directory, name)
    with _opened(directory, name) as given:
        size = os.fstat(given).st_size
        if size > MAX_BYTES:
            raise _too_large(name)
        # nothing cannot be mapped
        return memoryview(mmap.mmap(given, size, access=mmap.ACCESS_READ)) if size else b""


@contextlib.contextmanager
def _opened(directory: Path, name: str) -> Iterator[int]:
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotUnderstood(
            f"expected a directory, got {directory} ({error.strerror}); hand the model in again"
        ) from error
    try:
        with open_plain(name, folder) as given:
            yield given
    finally:
        os.close(folder)


def _too_large(name: str) -> NotUnderstood:
    return NotUnderstood(f"expected at most {MAX_BYTES} bytes in {name}, got more; hand in a smaller model")


def _members(directory: Path) -> list[str]:
    try:
        members = sorted(os.listdir(directory))
    except OSError as error:
        raise NotUnderstood(
            f"expected a directory, got {directory} ({error.strerror}); hand the model in again"
        ) from error
    return members[: MAX_FILES + 1]


def _expected(name: str, submission: Submission) -> str:
    return f"a model in format {submission.format}" if name == submission.model else "plain text"


def _inspect_text(name: str, data: bytes) -> None:
    if TEXTS.fullmatch(name) is None:
        raise NotUnderstood(f"expected {FILE}, the model, and README, LICENSE or NOTICE texts, got {name}; remove it")
    if len(data) > MAX_TEXT:
        raise NotUnderstood(f"expected at most {MAX_TEXT} bytes of text in {name}, got {len(data)}; shorten it")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise NotUnderstood(f"expected UTF-8 text in {name}, got other bytes; remove it") from error
    if any(ord(c) < 32 and c not in "\t\n\r\f" for c in text):
        raise NotUnderstood(f"expected plain text in {name}, got control characters; remove it")
