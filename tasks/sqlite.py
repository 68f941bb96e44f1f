"""Files of SQLite as the URLs by which SQLAlchemy, and so MLflow and Prefect, open them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote

PLAIN = re.compile(r"sqlite:///([^?]+)")
QUOTED = re.compile(r"sqlite\+pysqlite:///file:([^?]+)\?uri=true")


def sqlite_url(path: Path, driver: str = "") -> str:
    """The URL of an absolute path; what follows a `?` in a plain one would be taken for options."""
    if "?" not in str(path):
        return f"sqlite{driver and f'+{driver}'}:///{path}"
    # with its driver unnamed, MLflow would make a directory of the quoted path's name
    return f"sqlite+{driver or 'pysqlite'}:///file:{quote(str(path))}?uri=true"


def sqlite_file(url: str) -> Path | None:
    """The file that such a URL names; None for another database, or one that is opened with options."""
    if plain := PLAIN.fullmatch(url):
        return Path(plain[1])
    quoted = QUOTED.fullmatch(url)
    return Path(unquote(quoted[1])) if quoted else None
