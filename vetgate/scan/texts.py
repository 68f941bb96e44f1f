"""Text: what in it would be run by who reads it as YAML, as a template or as a program, and JSON by its values."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

from vetgate.scan.inspection import Place
from vetgate.scan.json_values import check_names, check_target, check_template, check_value
from vetgate.scan.mlmodel import FILE, read_mlmodel
from vetgate.scan.rules import (
    CONFIG_CALL,
    CONFIG_TARGET,
    CORRUPT,
    DUPLICATE,
    LIMIT,
    REMOTE_CODE,
    SOURCE_CODE,
    UNREAD,
)
from vetgate.scan.source import BrokenFileError, Source

MAX_TEXT = 32 << 20
CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")
SCRIPTS = (
    ".py", ".pyw", ".pyi", ".pyx", ".sh", ".bash", ".zsh", ".bat", ".cmd", ".ps1", ".vbs", ".js", ".mjs", ".ts",
    ".lua", ".rb", ".pl", ".php", ".r", ".jl", ".java", ".c", ".cc", ".cpp", ".cu", ".h", ".hpp", ".rs", ".go",
    ".cs", ".scala", ".ipynb", ".pth.py", ".sql", ".desktop", ".jar", ".service",
)  # fmt: skip
PYTHON = re.compile(
    r"^(from [\w.]+ import [\w(*]|import [\w.]+( as \w+)?(, *[\w.]+)*$|"
    r"def \w+\(.*:$|class \w+(\(.*\))?:$|exec\(|eval\()",
    re.M,
)
FENCE = re.compile(r"^(```|~~~|    \S|\.\. code)", re.M)
POINTER = "version https://git-lfs.github.com/spec/"
# a YAML tag, where a node can begin: verbatim, with a handle, or without
TAG = re.compile(r"(?:^|[\s\[{,:?-])(!(?:<[^>\n]{0,300}>|[\w-]*!?[\w%/.:;@&=+$#~*'()-]{1,300}))", re.M)
DIRECTIVE = re.compile(r"^%TAG\s", re.M)
KEY = re.compile(
    r"""(?:^|[\s{,\[-])["']?(_target_|auto_map|trust_remote_code|custom_pipelines)["']?\s*:[ \t]*(\S*)""", re.M
)
ESCAPED_KEY = re.compile(r'"[^"\\\n]{0,60}\\[^"\n]{1,60}"[ \t]{0,9}:', re.M)


def as_text(source: Source) -> str | None:
    """The text that bytes are: UTF-8 without controls; None if they are something else."""
    head = source.read(0, min(4096, source.size))
    if CONTROL.search(head.decode("latin-1")):
        return None
    if source.size > MAX_TEXT:
        raise BrokenFileError(LIMIT, f"{source.size} bytes; of text at most {MAX_TEXT} are read")
    try:
        text = source.read(0, source.size).decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if CONTROL.search(text) else text


def read_text(text: str, at: Place) -> None:
    """Inspect a text, as JSON if it is."""
    if at.name.lower().endswith(SCRIPTS):
        # no reader of configurations opens it, and code looks like much
        at.found(SOURCE_CODE, at.name)
        return
    if text.startswith("#!"):
        at.found(SOURCE_CODE, text[:40])
    if text.startswith(POINTER):
        at.found(UNREAD, "a pointer of git LFS; the file that it stands for is not here")
    if at.name == FILE:
        read_mlmodel(text, at)
    elif text.lstrip()[:1] in ("{", "[") and _read_json(text, at):
        return
    elif (found := PYTHON.search(text)) and not FENCE.search(text):
        at.found(SOURCE_CODE, found[0])
    check_text(text, at)


def check_text(text: str, at: Place) -> None:
    """Look in a text that is no JSON for what readers of YAML, configurations and templates run."""
    for found in TAG.finditer(text):
        # a tag may be spelt with %-escapes
        if "python" in (tag := unquote(found[1]).lower()) and ("/" in tag or ":" in tag):
            at.found(CONFIG_CALL, tag)
    if DIRECTIVE.search(text):
        at.found(CONFIG_CALL if "python" in text.lower() or "2002" in text else CONFIG_TARGET, "a %TAG directive")
    for found in KEY.finditer(text):
        key, value = found[1], found[2].strip("\"',}")
        if key == "_target_":
            check_target(value, at)
        elif value.lower() not in ("false", "null", "~", "no", "off", "none"):
            at.found(REMOTE_CODE, f"{key}: {value}")
    if found_key := ESCAPED_KEY.search(text):
        at.found(CONFIG_TARGET, f"the key {found_key[0]}, which is spelt with escapes")
    check_template(text, at)


def _read_json(text: str, at: Place) -> bool:
    """Inspect a text as JSON, or as JSON line by line; False if it is neither."""
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            twice.append(next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])))
        # of a key given twice, both values are looked at
        for key, value in pairs if twice else ():
            check_value({key: value}, at)
        return made

    try:
        values = [json.loads(text, object_pairs_hook=once)]
    except RecursionError:
        raise BrokenFileError(LIMIT, "JSON nested too deep") from None
    except ValueError as error:
        try:
            values = [json.loads(line, object_pairs_hook=once) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            if at.name.lower().endswith((".json", ".jsonl")):
                at.found(CORRUPT, f"JSON that cannot be read: {error}")
            return False
    for key in twice[:3]:
        at.found(DUPLICATE, f"the key {key!r}")
    for value in values:
        check_value(value, at)
        check_names(value, at)
    return True
