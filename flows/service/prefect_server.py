"""The Prefect server of `vetgate up`. On SQLite, its transactions take turns.

As it comes, a transaction that reads and then writes fails at once with "database is locked" when another wrote in
between, however long it may wait for a lock; a few runs at a time are enough for that. Left to SQLite, those that wait
starve, as there is no queue, and each keeps a connection that readers need. So requests queue here, first come first
served, before they take a connection, and begin with the right to write.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from flows.service.server import make_database
from tasks.environment import settle
from tasks.program import ended
from tasks.settings import load_settings

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
_has_turn = ContextVar("_has_turn", default=False)


def take_turns() -> None:
    """Have every transaction on SQLite wait until those that came before it have ended."""
    from prefect.server.database.configurations import AioSqliteConfiguration

    begin = AioSqliteConfiguration.begin_transaction

    @asynccontextmanager
    async def begin_in_turn(
        self: AioSqliteConfiguration, session: Any, with_for_update: bool = False
    ) -> AsyncGenerator[Any, None]:
        if _has_turn.get():
            # inside another: it would wait for itself
            async with begin(self, session, with_for_update) as transaction:
                yield transaction
            return
        async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            token = _has_turn.set(True)
            try:
                async with begin(self, session, with_for_update=True) as transaction:
                    yield transaction
            finally:
                _has_turn.reset(token)

    AioSqliteConfiguration.begin_transaction = begin_in_turn  # type: ignore[method-assign]


def main() -> None:
    """Serve where the settings say, from the database that PREFECT_SERVER_DATABASE_CONNECTION_URL names."""
    settle()
    settings = load_settings()
    if make_database():
        # asking whether there are migrations to run takes as long as importing all of them; read at Prefect's import
        os.environ.setdefault("PREFECT_SERVER_DATABASE_MIGRATE_ON_START", "false")
    take_turns()
    from prefect.cli import app

    sys.argv = ["prefect", "server", "start", "--host", settings.host, "--port", str(settings.prefect_port)]
    app()


if __name__ == "__main__":
    sys.exit(ended(main))
