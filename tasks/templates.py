"""Databases of MLflow and Prefect made from a shipped template, which is what all their migrations come to.

A template is SQL of one exact version: the schema, the last migration's number, and rows that are alike on every
machine. Under another version there is none, and the database is made by its migrations as ever.
`python -m tasks.templates` writes them anew; a test holds them against the migrations.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tasks.sqlite import sqlite_url

FOLDER = Path(__file__).parent
# tables whose rows the migrations write, the same everywhere; what is made later (an experiment, a key) has this
# machine's paths and secrets in it
CONSTANT = {"mlflow": ("alembic_version", "workspaces"), "prefect": ("alembic_version",)}
HEAD = "SELECT version_num FROM alembic_version"


def make(package: str, path: Path) -> None:
    """Give `path` a new database whole, by the template or by all migrations: killed on the way it leaves none."""
    if not make_from_template(package, path):
        migrate(package, path)


def make_from_template(package: str, path: Path) -> bool:
    """Give `path` a new database whole, unless there is one; False, making none, without a template that fits."""
    script = template(package)
    if script is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".template-") as room:
        draft = Path(room, path.name)
        try:
            with closing(sqlite3.connect(draft)) as database:
                database.executescript(script)
        except sqlite3.Error:
            # an SQLite that does not know what another one wrote
            return False
        with suppress(FileExistsError):
            os.link(draft, path)
    return True


def is_current(package: str, path: Path) -> bool:
    """Whether a database had the installed version's last migration, as far as its template tells which that is."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            heads = database.execute(HEAD).fetchall()
    except sqlite3.Error:
        return False
    line = f"INSERT INTO \"alembic_version\" VALUES('{heads[0][0]}');" if len(heads) == 1 else None
    return line in (template(package) or "").splitlines()


def template(package: str) -> str | None:
    """The template of exactly the installed version, None without one."""
    try:
        text = template_file(package).read_text()
        return text if text.startswith(_first_line(package, version(package))) else None
    except (OSError, PackageNotFoundError):
        return None


def template_file(package: str) -> Path:
    """Where the template of a package lies."""
    return FOLDER / f"template_{package}.sql"


def written(package: str, migrated: Path) -> str:
    """The template that a database is, which its migrations have just made."""
    with closing(sqlite3.connect(migrated)) as database:
        lines = [_first_line(package, version(package)), "BEGIN;\n", *(f"{line};\n" for line in _schema(database))]
        for table in CONSTANT[package]:
            lines += [f"{line}\n" for line in database.iterdump() if line.startswith(f'INSERT INTO "{table}"')]
    return "".join([*lines, "COMMIT;\n"])


def migrate(package: str, path: Path) -> None:
    """Make a database by the migrations of the installed version, and by nothing else."""
    if package == "mlflow":
        _migrate_mlflow(path)
        return
    where = {
        "PREFECT_HOME": str(path.parent),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": sqlite_url(path, "aiosqlite"),
    }
    line = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    subprocess.run(line, env=os.environ | where, check=True, capture_output=True)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = DELETE")


def _migrate_mlflow(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    from mlflow.tracking import MlflowClient

    # some sixty migrations sync the disk after each; in memory they take a third of the time and leave no file behind
    memory = f"file:{uuid.uuid4().hex}?mode=memory&cache=shared"
    with closing(sqlite3.connect(memory, uri=True)) as source:
        MlflowClient(f"sqlite:///{memory}&uri=true", f"sqlite:///{memory}&uri=true")
        with tempfile.TemporaryDirectory(dir=path.parent) as room:
            draft = Path(room, path.name)
            with closing(sqlite3.connect(draft)) as target:
                source.backup(target)
            os.link(draft, path)


def _schema(database: sqlite3.Connection) -> Iterator[str]:
    # tables first: an index, a trigger or a view is about one
    order = "type != 'table', rowid"
    for (line,) in database.execute(f"SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY {order}"):
        yield line


def _first_line(package: str, number: str) -> str:
    return f"-- {package} {number}\n"


def main() -> None:
    """Write every template for the installed versions."""
    for package in CONSTANT:
        with tempfile.TemporaryDirectory() as room:
            path = Path(room, f"{package}.db")
            migrate(package, path)
            template_file(package).write_text(written(package, path))


if __name__ == "__main__":
    main()
