"""The shipped databases are what the migrations of the installed versions make, and only used with exactly these."""

from __future__ import annotations

import multiprocessing
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tasks import templates
from tasks.mlflow.client import registry
from tasks.settings import Settings
from tasks.templates import CONSTANT, is_current, make, make_from_template, migrate, template, template_file, written
from tests.cached import made_once
from tests.databases import MIGRATIONS

PACKAGES = sorted(CONSTANT)
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each database as the migrations of the installed versions make it."""

    def make_all(folder: Path) -> None:
        for package in PACKAGES:
            migrate(package, folder / f"{package}.db")

    code, libraries = [Path(templates.__file__)], (*PACKAGES, *MIGRATIONS)
    return made_once("migrated", tmp_path_factory.mktemp("migrated"), make_all, code=code, libraries=libraries)


def schema(path: Path) -> dict[tuple[str, str], list[str]]:
    """The lines of every definition: migrations write the constraints of a table in an order that changes."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {(kind, name): sorted(line.strip(" \t,") for line in sql.splitlines()) for kind, name, sql in rows}


def content(path: Path) -> dict[str, list[Any]]:
    """The rows of every table that has any."""
    with closing(sqlite3.connect(path)) as database:
        tables = [name for kind, name in schema(path) if kind == "table"]
        found = {table: database.execute(f'SELECT * FROM "{table}"').fetchall() for table in tables}
    return {table: rows for table, rows in found.items() if rows}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_template_is_what_all_migrations_come_to(package: str, migrated: Path, tmp_path: Path) -> None:
    by_migrations, made = migrated / f"{package}.db", tmp_path / "made.db"
    assert make_from_template(package, made), f"no template of the installed {package}; run python -m tasks.templates"
    assert schema(made) == schema(by_migrations) and len(schema(made)) > 50
    rows = content(by_migrations)
    # MLflow's client makes its first experiment, with this machine's path in it, also in what a template made
    rows.pop("experiments", None)
    assert content(made) == rows and rows["alembic_version"]
    assert sorted(str(template(package))) == sorted(written(package, by_migrations))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_template_holds_no_path_no_secret_and_no_moment(package: str) -> None:
    text = template_file(package).read_text()
    inserted = [line for line in text.splitlines() if line.startswith("INSERT")]
    assert 1 <= len(inserted) <= 2 and "/" not in "".join(inserted) and str(Path.home()) not in text


def test_mlflow_takes_a_database_of_the_template_for_its_own(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    with registry(settings) as client:
        assert client.create_experiment("first") == "1"
        assert client.get_experiment("0").name == "Default"
        client.create_registered_model("prod.digits")
    assert schema(settings.home / "mlflow.db").keys() >= schema_of_template("mlflow", tmp_path).keys()


def schema_of_template(package: str, folder: Path) -> dict[tuple[str, str], list[str]]:
    make_from_template(package, folder / "template.db")
    return schema(folder / "template.db")


def test_another_version_s_template_is_refused_and_the_migrations_make_the_database(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "template_mlflow.sql"
    other.write_text(template_file("mlflow").read_text().replace("-- mlflow ", "-- mlflow 9.", 1))
    monkeypatch.setattr(templates, "FOLDER", tmp_path)
    assert template("mlflow") is None and not make_from_template("mlflow", tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
    make("mlflow", tmp_path / "made.db")
    assert schema(tmp_path / "made.db") == schema(migrated / "mlflow.db")


def test_a_template_that_this_sqlite_cannot_read_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "template_mlflow.sql").write_text(template_file("mlflow").read_text() + "CREATE WONDER;")
    monkeypatch.setattr(templates, "FOLDER", tmp_path)
    assert not make_from_template("mlflow", tmp_path / "home" / "mlflow.db")
    assert list((tmp_path / "home").iterdir()) == []


def test_several_at_once_leave_one_whole_database(tmp_path: Path) -> None:
    path, start = tmp_path / "home" / "prefect.db", FORK.Barrier(4)

    def work() -> None:
        start.wait()
        assert make_from_template("prefect", path)

    processes = [FORK.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert [file.name for file in path.parent.iterdir()] == ["prefect.db"]
    assert schema(path) == schema_of_template("prefect", tmp_path)


def test_only_a_database_with_the_last_migration_is_current(tmp_path: Path) -> None:
    path = tmp_path / "a home?" / "prefect.db"
    assert not is_current("prefect", path)
    assert make_from_template("prefect", path) and is_current("prefect", path)
    assert not is_current("mlflow", path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'another'")
        database.commit()
    assert not is_current("prefect", path)
    path.write_bytes(b"no database")
    assert not is_current("prefect", path)


def test_a_database_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    assert make_from_template("mlflow", path)
    assert path.read_bytes() == before
