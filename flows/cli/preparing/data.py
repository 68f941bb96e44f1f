"""The commands `data add` and `data list`: trusted images that models are vetted on, from a file or a folder."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.console import AsJson, Outcome, carry_out

if TYPE_CHECKING:
    from tasks.settings import Settings

SIZE = re.compile(r"([1-9][0-9]{0,3})(?:x([1-9][0-9]{0,3}))?")
# a day: as many images as anyone has
SECONDS, MOST_BYTES = 24 * 3600, 1 << 40

data_app = typer.Typer(help="Reference data: trusted images that models are vetted on.", no_args_is_help=True)


@data_app.command("add")
def data_add(
    name: Annotated[str, typer.Argument(help="Name under which submissions refer to it.", metavar="NAME")],
    given: Annotated[
        Path,
        typer.Argument(
            help=".npz with x_train, y_train, x_test, y_test, or a folder of train/CLASS/ and test/CLASS/, or CLASS/.",
            metavar="FILE",
        ),
    ],
    training: Annotated[
        bool, typer.Option("--training", help="A supplier's training set: classes may be missing or rare.")
    ] = False,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH to which the images of a folder are resized.", metavar="SIZE")
    ] = None,
    grey: Annotated[
        bool | None, typer.Option("--grey/--colour", help="Of a folder: one channel or three; the images decide.")
    ] = None,
    json: AsJson = False,
) -> int:
    """Register a reference data set under DVC.

    Images of a folder are resized as a whole, bilinearly; without a folder test, a fifth of each class is for testing.
    """

    def command() -> Outcome:
        from flows.cli.show import show_pairs
        from tasks.data.reference import add, describe, doubts
        from tasks.progress import announce, progress_of
        from tasks.settings import load_settings

        settings = load_settings()
        with tempfile.TemporaryDirectory() as made:
            file = given
            if given.is_dir():
                file = _packed(settings, given, Path(made), size, grey)
            ref = add(settings, name, file, progress_of(f"reading {file.name}"), training=training)
        warnings = doubts(describe(settings, ref))
        for warning in warnings:
            announce(f"warning: {warning}")
        blob = {"name": ref.name, "rev": ref.rev, "path": ref.path, "sha256": ref.sha256, "warnings": warnings}
        return Outcome(0, blob, lambda console: show_pairs(console, blob))

    return carry_out(command, as_json=json)


@data_app.command("list")
def data_list(json: AsJson = False) -> int:
    """List the registered reference data sets."""

    def command() -> Outcome:
        from flows.cli.show import show_data
        from tasks.data.reference import describe, registered
        from tasks.settings import load_settings

        settings = load_settings()
        rows = [
            {"name": ref.name, "rev": ref.rev, "sha256": ref.sha256, "classes": described["classes"]}
            for ref in registered(settings)
            for described in [describe(settings, ref)]
        ]
        return Outcome(0, {"data": rows}, lambda console: show_data(console, rows))

    return carry_out(command, as_json=json)


def _packed(settings: Settings, directory: Path, room: Path, size: str | None, grey: bool | None) -> Path:
    """The images of a folder as a .npz file in `room`, made in the sandbox."""
    from tasks.data import image_folder
    from tasks.progress import announce, progress_of
    from tasks.sandbox.host import Limits, Sandbox

    file = room / "images.npz"
    payload: dict[str, Any] = {
        "directory": str(directory.absolute()),
        "file": str(file),
        "size": _sides(size),
        "grey": grey,
    }
    limits = Limits(cpu_seconds=SECONDS, file_bytes=MOST_BYTES)
    with Sandbox(scratch=room, read_only=[directory], ops=Path(image_folder.__file__), limits=limits) as sandbox:
        found = sandbox.call("pack", payload, on_progress=progress_of(f"reading images in {directory.name}"))
    height, width, channels = found["image"]
    announce(
        f"{found['images']['train']} images to train and {found['images']['test']} to test, of {found['classes']} "
        f"classes, {height}x{width} {'grey' if channels == 1 else 'in colour'}, {found['resized']} of them resized"
    )
    return file


def _sides(size: str | None) -> tuple[int, int] | None:
    from vetgate.errors import BadSubmission

    if size is None:
        return None
    if (said := SIZE.fullmatch(size)) is None:
        raise BadSubmission(f"expected a size such as 32 or 32x48, height first, got {size!r}; write it so")
    return int(said[1]), int(said[2] or said[1])
