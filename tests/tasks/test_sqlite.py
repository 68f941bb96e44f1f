from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy

from tasks.sqlite import sqlite_file, sqlite_url

FOLDERS = ["plain", "a b", "q?x", "q?x=1&y#z", "#", "%41", "Müller", "日本?", "$a{b}?%3F", "'\"?"]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("driver", ["", "pysqlite"])
def test_the_file_that_is_named_is_the_one_that_is_opened(folder: str, driver: str, tmp_path: Path) -> None:
    file = tmp_path / folder / "some.db"
    file.parent.mkdir()
    url = sqlite_url(file, driver)
    with sqlalchemy.create_engine(url).begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE made (here INTEGER)"))
    assert [path.name for path in tmp_path.iterdir()] == [folder]
    assert [path.name for path in file.parent.iterdir()] == ["some.db"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_url_tells_its_file(folder: str) -> None:
    file = Path("/srv", folder, "mlflow.db")
    assert sqlite_file(sqlite_url(file)) == file


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host/base",
        "http://127.0.0.1:5000",
        "sqlite://",
        "sqlite:///:memory:?cache=shared",
        "sqlite:////srv/mlflow.db?timeout=5",
        "sqlite:///file:memory?mode=memory&uri=true",
    ],
)
def test_of_another_database_there_is_no_file(url: str) -> None:
    assert sqlite_file(url) is None
