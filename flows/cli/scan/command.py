"""The command `scan`: what would run code in who loads a file, found in its bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import AsJson, Outcome, carry_out

if TYPE_CHECKING:
    from vetgate.scan.scanned import ScannedFile

File = Path | None


def scan(
    paths: Annotated[list[Path], typer.Argument(help="Files and directories.", metavar="PATH...")],
    sarif: Annotated[File, typer.Option(help="Write a SARIF 2.1.0 log here, whatever is found.")] = None,
    seconds: Annotated[
        int, typer.Option(min=1, help="Processor seconds for a file; large ones get more in proportion.")
    ] = 30,
    json: AsJson = False,
) -> int:
    """Scan model files for what attacks their reader, by content and without loading any.

    Exits with 0 if every file was understood to its last byte and is data; 1 if one is malicious; 3 if one is not
    understood, holds code that nobody has judged, or there was nothing to scan; 4 for wrong usage. Archives are opened,
    also within one another. Links are not followed. Whatever is not 0 should not be loaded.
    """

    def command() -> Outcome:
        from flows.cli.scan.show import as_blob, exit_code, show_scan

        scanned = _scanned(paths, seconds)
        code = exit_code(scanned)
        if sarif is not None:
            _write(sarif, scanned, code)
        return Outcome(code, as_blob(scanned), lambda console: show_scan(console, scanned))

    return carry_out(command, as_json=json)


def _scanned(paths: list[Path], seconds: int) -> list[ScannedFile]:
    from tasks.sandbox.scanning import ScanWorker, scan_all
    from vetgate.errors import BadSubmission

    for path in paths:
        if not path.exists():
            raise BadSubmission(f"expected files and directories, got {path}, which does not exist; name another path")
    with ScanWorker(seconds=seconds) as worker:
        return [file for path in paths for file in scan_all(path, worker)]


def _write(sarif: Path, scanned: list[ScannedFile], code: int) -> None:
    import json

    from flows.cli.scan.log import scan_log
    from vetgate.errors import StoreError

    try:
        sarif.write_text(json.dumps(scan_log(scanned, code), indent=2) + "\n")
    except OSError as error:
        raise StoreError(f"expected to write {sarif}, got {error.strerror}; name another file") from error
