"""Files of SQLite as the URLs by which SQLAlchemy, and so MLflow and Prefect, open them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote

SQLITE = "sqlite:///"


def sqlite_url(path: Path, driver: str = "sqlite") -> str:
    """The URL of an absolute path; what follows a `?` in a plain one would be taken for options."""
    plain = f"{driver}:///{path}"
    return plain if "?" not in plain else f"{driver}:///file:{quote(str(path))}?uri=true"


def sqlite_file(url: str) -> Path | None:
    """The file that an sqlite:/// URL names; None for another database, or one that is opened with options."""
    place, _, options = url.removeprefix(SQLITE).partition("?")
    if not url.startswith(SQLITE) or options not in ("", "uri=true"):
        return None
    return Path(unquote(place.removeprefix("file:"))) if options else Path(place)
