"""The command `init`: a `submission.yaml` for a model file, filled in as far as the file tells."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.console import AsJson, Outcome, carry_out

if TYPE_CHECKING:
    from rich.console import Console


def init(
    model: Annotated[Path, typer.Argument(help="The model's file; of an MLflow directory MLmodel.", metavar="FILE")],
    json: AsJson = False,
) -> int:
    """Write a submission.yaml beside a model file, with what the file says filled in; never over another.

    The file is read in the sandbox, and nothing of it is run.
    """

    def command() -> Outcome:
        from vetgate.errors import BadSubmission, StoreError
        from vetgate.formats.submission import FILE
        from vetgate.formats.template import name_for, template, unknown

        path = model.absolute().parent / FILE
        if not model.is_file():
            raise BadSubmission(f"expected a model file, got {model}; name the file")
        if path.exists():
            raise BadSubmission(
                f"expected no {FILE} beside {model}, got one, which is left as it is; edit or remove it"
            )
        said = _said(model)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(template(name_for(model), model.name, said))
        except OSError as error:
            raise StoreError(f"expected to write {path}, got {error.strerror}; make the directory writable") from error
        left = unknown(said)
        blob = {"path": str(path), "format": said["format"], "fill_in": left}
        return Outcome(0, blob, lambda console: _show(console, path, left))

    return carry_out(command, as_json=json)


def _said(model: Path) -> dict[str, Any]:
    from tasks.sandbox import looking
    from tasks.sandbox.host import Sandbox

    directory = model.absolute().parent
    with (
        tempfile.TemporaryDirectory() as scratch,
        Sandbox(scratch=Path(scratch), read_only=[directory], ops=Path(looking.__file__)) as sandbox,
    ):
        return sandbox.call("look", {"directory": str(directory), "model": model.name})


def _show(console: Console, path: Path, left: list[str]) -> None:
    console.print(f"{path}\nfill in {', '.join(left)}, then: vetgate vet {path.parent}", soft_wrap=True)
