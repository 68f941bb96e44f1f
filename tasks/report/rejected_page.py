"""What guards rejected as one self-contained page of pictures, newest first; no script, every given string escaped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.rejected import FOLDER, Kept, picture, write_own
from tasks.report.page import environment
from tasks.report.trigger_images import data_uri
from vetgate.errors import StoreError
from vetgate.role import title_of
from vetgate.shape import Blob

MOST_PICTURES = 300


def write_rejected(home: Path, name: str | None, found: Sequence[Kept]) -> Path:
    """Write the page of what is kept of one model, or of all, for this user only; its path. Raises StoreError."""
    # no model is called so
    path = home / FOLDER / "_pages" / f"{name or '_all'}.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_own(path, render_rejected(name, found).encode())
    except OSError as error:
        raise StoreError(f"expected to write {path}, got {error.strerror}; make room there") from error
    return path


def render_rejected(name: str | None, found: Sequence[Kept]) -> str:
    """The page of these rejections."""
    items = [_item(item) for item in found[:MOST_PICTURES]]
    page = {"name": name, "total": len(found), "items": items}
    return environment().get_template("rejected.html.j2").render(page)


def _item(item: Kept) -> Blob:
    said, png = item.rejection, picture(item)
    label = "nothing" if said.said is None else f"{said.said_class} ({said.said})"
    return {
        "picture": None if png is None else data_uri(png),
        "outcome": said.outcome if said.outcome != "accept" else "accepted, and logged",
        "said": f"{said.said}" if said.said_class == str(said.said) else label,
        "guards": [
            {"title": title_of(guard), "score": score, "cut": said.cuts.get(guard), "alarmed": guard in said.alarms}
            for guard, score in said.scores.items()
        ],
        "model": f"prod.{said.name} version {said.version}",
        "time": said.time,
    }
