"""One running service for the tests that need no other, and a PostgreSQL cluster."""

from __future__ import annotations

import itertools
import os
import pwd
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import system
from tests.service.running import Service, free_ports, running_service


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL cluster with a database for each server."""

    prefect: str
    mlflow: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables that have `vetgate up` use it."""
        return {"PREFECT_SERVER_DATABASE_CONNECTION_URL": self.prefect, "MLFLOW_BACKEND_STORE_URI": self.mlflow}


@pytest.fixture(scope="session")
def service_environment(installation_with_promotion: dict[str, str]) -> dict[str, str]:
    """What the service of this session is set to besides its home and its ports."""
    return installation_with_promotion


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, service_environment: dict[str, str]) -> Iterator[Service]:
    """A running service, the same for the whole session."""
    with running_service(tmp_path_factory.mktemp("service") / "home", **service_environment) as running:
        yield running


@pytest.fixture(scope="session")
def start_service(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., AbstractContextManager[Service]]:
    """Starts another service: with start_service(VARIABLE=value) as running."""

    def start(**environment: str) -> AbstractContextManager[Service]:
        return running_service(tmp_path_factory.mktemp("service") / "home", **environment)

    return start


@pytest.fixture
def postgres(databases: Callable[[], Postgres]) -> Postgres:
    """Databases that no other service has used: what MLflow keeps there is encrypted with a key of each home."""
    return databases()


@pytest.fixture(scope="session")
def databases() -> Iterator[Callable[[], Postgres]]:
    """Makes a database for each server, empty every time, in a PostgreSQL cluster on a free port of this machine."""
    system.require(system.POSTGRESQL)
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    # initdb refuses to be root; its socket's path must be short
    user = _owner()
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        os.chmod(folder, 0o755)
        data = Path(folder, "data")
        data.mkdir()
        if user is not None:
            os.chown(data, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        port = free_ports(1)[0]

        def run(program: str, *arguments: str) -> None:
            line = [str(found[-1] / program), *arguments]
            log = Path(data, "..", "log")
            with log.open("ab") as out:
                done = subprocess.run(line, user=user, cwd=data, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
            assert done.returncode == 0, f"{program}: {log.read_text()}"

        run("initdb", "--pgdata", str(data), "--username", "vetgate", "--auth", "trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data} -c fsync=off"
        run("pg_ctl", "--pgdata", str(data), "--wait", "--options", options, "start")
        place, turns = f"vetgate@127.0.0.1:{port}", itertools.count()

        def fresh() -> Postgres:
            turn = next(turns)
            names = [f"prefect{turn}", f"mlflow{turn}"]
            for name in names:
                run("createdb", "--host", "127.0.0.1", "--port", str(port), "--username", "vetgate", name)
            return Postgres(f"postgresql+asyncpg://{place}/{names[0]}", f"postgresql://{place}/{names[1]}")

        try:
            yield fresh
        finally:
            run("pg_ctl", "--pgdata", str(data), "--wait", "--mode", "immediate", "stop")


def _owner() -> str | None:
    """Whom the cluster belongs to: the user that runs the tests, unless that is root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
