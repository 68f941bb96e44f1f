"""The commands of the serving side and of operators: `verify` and `status`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import AsJson, Outcome, carry_out
from vetgate.formats.plain_text import escaped
from vetgate.shape import Blob

if TYPE_CHECKING:
    from flows.cli.sarif import Checked
    from tasks.settings import Settings

app = typer.Typer()

File = Path | None


@dataclass(frozen=True)
class Asked:
    """What is to be verified: a directory with its attestation and name, or a models:/ URI."""

    target: str
    settings: Settings
    attestation: File
    name: str | None
    output: File


@app.command()
def verify(
    target: Annotated[
        str, typer.Argument(help="A directory, or models:/prod.NAME@ALIAS or /VERSION.", metavar="TARGET")
    ],
    attestation: Annotated[File, typer.Option(help="The signed statement (DSSE, JSON); for a directory.")] = None,
    name: Annotated[str | None, typer.Option(help="The name under which the model is used; for a directory.")] = None,
    trust_root: Annotated[File, typer.Option(help="Public keys to trust; this installation's if left out.")] = None,
    output: Annotated[File, typer.Option(help="New directory for the verified bytes; for models:/.")] = None,
    sarif: Annotated[File, typer.Option(help="Write a SARIF 2.1.0 log here, also when refused.")] = None,
    junit: Annotated[File, typer.Option(help="Write JUnit XML here, also when refused.")] = None,
    json: AsJson = False,
) -> int:
    """Check that these are exactly the bytes that a trusted gate let pass, files or a model in production.

    Exits with 0 if so; 1 denied: other bytes, another name, no promotion, no PASS, a signature that does not fit;
    2 store or registry unreachable, disk full; 3 a file that is not understood; 4 usage; 5 expired, revoked or out of
    date. Whatever is not 0 must not be served. With models:/, --output writes exactly the verified bytes to a new
    directory, or nothing. A directory of guarded.NAME, which MLflow loads, holds its own attestation.
    """

    def command() -> Outcome:
        from tasks.settings import load_settings

        settings = load_settings(**({} if trust_root is None else {"trust_root": trust_root}))
        asked = Asked(target, settings, attestation, name, output)
        blob = _reported(asked, sarif, junit)
        return Outcome(0, blob, lambda console: console.print(f"verified: {blob['name']}, {blob['verdict']}"))

    return carry_out(command, as_json=json)


@app.command()
def status(json: AsJson = False) -> int:
    """Show the queue, the verdicts, what is in production until when, waivers and the last rescan.

    Exits with 0, or 2 where something of it cannot be known: with --json that is null, and named under `unknown`.
    """

    def command() -> Outcome:
        from flows.cli.show_status import show_status
        from flows.cli.status import at_a_glance
        from tasks.settings import load_settings

        seen = at_a_glance(load_settings())
        return Outcome(2 if seen["unknown"] else 0, seen, lambda console: show_status(console, seen))

    return carry_out(command, as_json=json)


def _reported(asked: Asked, sarif: File, junit: File) -> Blob:
    """What `_verified` says; the reports that were asked for are written whatever that is."""
    from flows.cli.sarif import Checked
    from vetgate.errors import VetgateError

    begun = time.monotonic()
    try:
        blob = _verified(asked)
    except Exception as error:
        code = error.exit_code if isinstance(error, VetgateError) else 2
        try:
            if sarif is not None or junit is not None:
                checked = Checked(asked.target, _manifest(asked), time.monotonic() - begun, error, code)
                _write(checked, sarif, junit)
        except Exception as unwritten:
            # the refusal is what counts
            print(f"error: {escaped(str(unwritten))}", file=sys.stderr)
        raise
    if sarif is not None or junit is not None:
        manifest = blob.get("manifest_sha256") or _manifest(asked)
        _write(Checked(asked.target, manifest, time.monotonic() - begun), sarif, junit)
    return blob


def _verified(asked: Asked) -> Blob:
    from flows.production.pyfunc_files import FILE, check_pyfunc
    from flows.production.verify import verify as verify_directory
    from flows.production.verify import verify_model
    from vetgate.errors import BadSubmission
    from vetgate.trust.keys import read_trust_root

    if asked.target.startswith("models:"):
        if asked.attestation is not None or asked.name is not None:
            raise BadSubmission("expected --attestation and --name with a directory only; the registry knows both")
        return verify_model(asked.target, asked.settings, output=asked.output)
    alone = (asked.attestation, asked.name, asked.output) == (None, None, None)
    if alone and Path(asked.target, FILE).is_file():
        return check_pyfunc(Path(asked.target), read_trust_root(asked.settings.trust_root)).claims
    if asked.attestation is None or asked.name is None or asked.output is not None:
        raise BadSubmission("expected a directory with --attestation FILE and --name NAME, and --output with models:/")
    return verify_directory(
        Path(asked.target), attestation=asked.attestation, name=asked.name, trust_root=asked.settings.trust_root
    )


def _manifest(asked: Asked) -> str | None:
    """Which bytes this was about, as far as that can be told after a refusal."""
    from flows.production.serving import manifest_of
    from vetgate.errors import VetgateError
    from vetgate.formats.manifest import hash_directory

    try:
        if asked.target.startswith("models:"):
            return manifest_of(asked.target, asked.settings)
        return hash_directory(Path(asked.target)).sha256
    except VetgateError:
        return None


def _write(checked: Checked, sarif: File, junit: File) -> None:
    import json

    from flows.cli.junit import junit_xml
    from flows.cli.sarif import sarif_log
    from vetgate.errors import StoreError

    reports: tuple[tuple[File, Callable[[], bytes]], ...] = (
        (sarif, lambda: (json.dumps(sarif_log(checked), indent=2) + "\n").encode()),
        (junit, lambda: junit_xml(checked)),
    )
    for path, made in reports:
        try:
            if path is not None:
                path.write_bytes(made())
        except OSError as error:
            raise StoreError(f"expected to write {path}, got {error.strerror}; name another file") from error
