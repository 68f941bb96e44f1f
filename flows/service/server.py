"""The Prefect server that lives as long as the command that started it: for machines that have none.

Prefect's own ephemeral server outlives a command killed with SIGKILL, and is started only once a flow asks for it.
This one watches a pipe from its parent, and comes up while the command is busy with other things.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import threading
import time
from pathlib import Path

from tasks.importing import importing
from tasks.program import ended
from tasks.sqlite import sqlite_url
from tasks.templates import is_current, make_from_template

DATABASES = ("PREFECT_SERVER_DATABASE_", "PREFECT_API_DATABASE_")
GRACE_SECONDS = 0.5


def main() -> None:
    """Serve Prefect's API on the listening socket argv[1] until standard input ends."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if make_database():
        # asking whether there are migrations to run takes as long as importing all of them
        os.environ.setdefault("PREFECT_SERVER_DATABASE_MIGRATE_ON_START", "false")
    with importing():
        import uvicorn
        from prefect.server.api.server import create_app

        application = create_app(ephemeral=True, final=True)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            # two commands may start at once on one database: its migrations must not
            lock = Path(os.environ["PREFECT_HOME"], "startup.lock")
            with lock.open("w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                await super().startup(sockets)

    Server(uvicorn.Config(application, log_level="error")).run(sockets=[listener])


def make_database() -> bool:
    """Make the database of this home from the template, unless it is there; whether it needs no migrations.

    False where the environment names another one.
    """
    path = Path(os.environ["PREFECT_HOME"], "prefect.db")
    if any(name.startswith(DATABASES) for name in os.environ):
        return False
    # read at Prefect's import, which would put the path into a URL as it is
    os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = sqlite_url(path.absolute(), "aiosqlite")
    return (path.exists() or make_from_template("prefect", path)) and is_current("prefect", path)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    time.sleep(GRACE_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(ended(main))
