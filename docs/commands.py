"""Write docs/reference/commands.md from the command line: `python -m docs.commands`; --check as in docs.methods."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from docs.generated import settle
from flows.cli.commands import app

PAGE = Path(__file__).parent / "reference" / "commands.md"
HEAD = """# Commands

Generated from the code by `make docs`; do not edit.

Progress and errors go to stderr, results to stdout. With `--json` a command prints one JSON object on stdout, also for
an error: `{"error": …, "exit_code": …}`. What a command reads from the environment is listed under
[settings](../how-to/servers.md).

## Exit codes

| exit code | meaning |
| --- | --- |
| 0 | passed, or done |
| 1 | FAIL, something was taken back, or the gate refuses: no PASS, another name, a changed byte, an unknown key |
| 2 | error: a data set or store cannot be reached, a disk is full or read-only, a clock is wrong |
| 3 | INCONCLUSIVE: nothing could be inspected, or a file is not understood to its last byte |
| 4 | usage: the command line, `submission.yaml`, a policy |
| 5 | the verdict is stale: expired, revoked, given under another policy; or what the ledger tells of is missing |
| 130 | interrupted; what was finished is kept |

Nothing ends with 1 but a FAIL, a refusal or what was taken back: whatever goes wrong otherwise, in our code or in a
library, ends with 2. Where stdout cannot be written (a full disk, a closed descriptor) a command says so on stderr and
ends with 2 instead of its own code; where its reader went away, as in `vetgate status | head -1`, it ends with its own.
Characters that the encoding of a terminal lacks are written out, and so are controls in what suppliers wrote.

Every command can end with 0, 2, 4 and 130. What 1, 3 and 5 mean is said with the commands that use them.
"""
KINDS = {int: "NUMBER", float: "SHARE", str: "TEXT", Path: "PATH"}
# what else a command can end with than 0, 2, 4 and 130
ENDS: dict[str, dict[int, str]] = {
    "approve": {1: "this key does not count", 5: "what is to be approved ran out"},
    "data add": {3: "the file is no data set, an image is none, or no model can be vetted on it"},
    "demo": {2: "it ended otherwise than expected"},
    "init": {3: "the file is not understood"},
    "ledger verify": {1: "something is forged, or not entered", 5: "something is missing, or was changed since"},
    "promote": {1: "refused", 5: "the verdict is stale, or something that the ledger tells of is missing"},
    "reconcile": {1: "an alias was taken back", 5: "the ledger is broken: what the gate promoted was left where it is"},
    "rescan": {1: "a model was taken back", 3: "a canary came out wrong, and nothing of the batch counts"},
    "revoke": {1: "the key does not count"},
    "scan": {1: "a file is malicious", 3: "a file is not understood, or there was nothing to scan"},
    "serve": {1: "denied", 3: "a file is not understood", 5: "expired, revoked, out of date, or gone from the ledger"},
    "submit": {3: "a file is not understood"},
    "verify": {1: "denied", 3: "a file is not understood", 5: "expired, revoked, out of date, or gone from the ledger"},
    "vet": {1: "FAIL", 3: "INCONCLUSIVE"},
    "waive": {1: "the finding may not be waived", 4: "no such finding"},
}


def render() -> str:
    """The whole page."""
    blocks = [section(name, command) for name, command in sorted(walk(typer.main.get_command(app), ""))]
    return "\n".join([HEAD, *blocks])


def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, under its full name."""
    for word, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{name} {word}".strip())
    if not hasattr(command, "commands"):
        yield name, command


def section(name: str, command: Any) -> str:
    """One command: what it does, what it takes, how it ends."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = [f"{_called(p)}" if p.required else f"[{_called(p)}]" for p in arguments]
    usage = " ".join(["vetgate", name, *words, "[OPTIONS]"])
    rows = [_row(p) for p in command.params]
    table = ["| takes | meaning | default |", "| --- | --- | --- |", *rows, ""] if rows else []
    ends = [f"- Exit code {code}: {why}" for code, why in sorted(ENDS.get(name, {}).items())]
    return "\n".join(
        [
            f"## {name}",
            "",
            f"    {usage}",
            "",
            inspect.cleandoc(command.help or ""),
            "",
            *table,
            *ends,
            *([""] * bool(ends)),
        ]
    )


def _called(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        shown = f"`{_called(parameter)}`"
    else:
        kind = "" if parameter.is_flag else f" {KINDS[parameter.type_descriptor.annotation]}"
        shown = f"`{', '.join(parameter.opts)}{kind}`"
    return f"| {shown} | {(parameter.help or '').replace('<', '&lt;')} | {_default(parameter)} |"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    return "" if parameter.default in (None, False) else f"`{parameter.default}`"


def main(arguments: Sequence[str]) -> int:
    """Write the page, or with --check say whether it is up to date."""
    return settle(PAGE, render(), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
