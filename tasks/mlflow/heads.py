"""The published head of the ledger in MLflow: a tag of an experiment of its own, which holds nothing else.

Who writes the store cannot write there. It is read without importing MLflow, which takes seconds, and a server is told
so too: the gate publishes after every decision. In a database of this machine what uses the registry anyway does it.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tasks import events
from tasks.mlflow.answers import an_object, answer_of, objects, text
from tasks.mlflow.client import by_server, experiment, registry
from tasks.mlflow.database import database_at, only_mlflow_knows
from tasks.mlflow.reader import access
from tasks.records.ledger_heads import head_at, held_against, newer, publish_where_named, read_head, signed_head
from tasks.records.ledger_state import LedgerState, ledger_state
from tasks.settings import Settings
from tasks.sqlite import sqlite_file
from vetgate.errors import Denied, Removed, StoreError, VetgateError
from vetgate.formats.plain_text import escaped
from vetgate.trust.keys import TrustRoot, read_trust_root
from vetgate.verdict.policy import load_policy

EXPERIMENT, TAG = "vetgate-ledger", "vetgate.ledger.head"
MLFLOW = "mlflow"
PLACE = f"the head in mlflow, experiment {EXPERIMENT}"
HEAD = """SELECT t.value FROM experiment_tags t JOIN experiments e ON e.experiment_id = t.experiment_id
    WHERE e.workspace = 'default' AND e.name = ? AND t.key = ?"""


def publish_head(settings: Settings, *, quickly: bool = False) -> None:
    """Publish how far the ledger goes, in MLflow and where the policy names; what cannot be is logged, and done later.

    `quickly` leaves out an MLflow that would have to be imported for it.
    """
    try:
        state = ledger_state(settings)
        data = signed_head(state)
        if data is None:
            return
        publish_where_named(state, data)
        if _server(settings):
            _tell_server(state, data)
        # asked first: where nothing was entered since, MLflow is not imported for it
        elif not quickly and newer(state, data, published_head(settings), MLFLOW):
            with registry(settings) as client:
                where = experiment(client, settings, EXPERIMENT)
                client.set_experiment_tag(where, TAG, data.decode())
    except VetgateError as error:
        logging.getLogger(__name__).warning("the head of the ledger could not be published: %s", error)


def published_head(settings: Settings) -> bytes | None:
    """What stands in MLflow as the head, None where nothing does; raises StoreError."""
    uri = settings.tracking_uri
    if _server(settings):
        with _client(settings) as client:
            found = _asked(client, uri)
            return None if found is None else _tag(found, uri)
    if (path := sqlite_file(uri)) is not None and not only_mlflow_knows():
        if not path.exists():
            return None  # a question makes no database
        with suppress(sqlite3.Error), database_at(path) as database:
            row = database.execute(HEAD, (EXPERIMENT, TAG)).fetchone()
            return None if row is None else text(row[0]).encode()
    with registry(settings) as client:
        known = client.get_experiment_by_name(EXPERIMENT)
        tag = None if known is None else known.tags.get(TAG)
        return None if tag is None else text(tag).encode()


def _signed(data: bytes | None, trust: TrustRoot) -> tuple[bytes | None, str | None]:
    """A published head that a gate signed, or none, and what is wrong with one that no gate did, of which it tells.

    Who can write there can also delete it, so such a one says no more than none; the next one published replaces it.
    """
    if data is None:
        return None, None
    try:
        read_head(data, trust)
    except Denied as error:
        found = f"expected {PLACE} to be signed by a gate, got: {error}; it is written anew, see who can write there"
        logging.getLogger(__name__).warning("%s", found)
        events.emit(events.LEDGER_BROKEN, "ledger", {"found": found}, once=found)
        return None, found
    return data, None


def whole_ledger(settings: Settings) -> LedgerState:
    """The state of the ledger, which goes at least as far as a gate says in MLflow and where the policy names.

    Raises Removed, Denied, BadPolicy, and StoreError where MLflow cannot be read. A head that no gate signed, or that
    cannot be read where the policy names, is told of and counts as none.
    """
    # the heads first: what is entered meanwhile is beyond them
    published = published_head(settings)
    named, unread = _heads_where_named(settings)
    state = ledger_state(settings)
    held_against(state, _signed(published, state.trust)[0], MLFLOW)
    _hold_against(state, named, unread)
    return state


def check_end(settings: Settings) -> None:
    """Raise Removed where the ledger ends before any published head: nothing is to be signed after such an end.

    A head that cannot be read is logged: who is asked for a verdict cannot wait for a registry.
    """
    found, unread = heads_found(settings, None)
    _hold_against(ledger_state(settings) if found else None, found, unread)


def _hold_against(state: LedgerState | None, found: dict[str, bytes], unread: list[str]) -> None:
    for wrong in unread:
        logging.getLogger(__name__).warning("a published head of the ledger could not be read: %s", wrong)
    for where, data in found.items():
        try:
            if state is not None:
                held_against(state, data, where)
        except Removed:
            raise
        except Denied as error:
            logging.getLogger(__name__).warning("the head in %s says nothing: %s", where, error)


def heads_found(settings: Settings, where: str | None) -> tuple[dict[str, bytes], list[str]]:
    """The published heads by where they are, and what could not be read; with `where`, that one, or StoreError."""
    if where is not None:
        wrong: str | None = None
        if where == MLFLOW:
            data, wrong = _signed(published_head(settings), read_trust_root(settings.trust_root))
        else:
            data = head_at(settings, where)
        if data is None:
            raise StoreError(
                wrong or f"expected a published head of the ledger in {where}, got none; name another place"
            )
        return {where: data}, []
    found: dict[str, bytes] = {}
    unread = []
    try:
        if (published := published_head(settings)) is not None:
            signed, wrong = _signed(published, read_trust_root(settings.trust_root))
            found |= {} if signed is None else {MLFLOW: signed}
            unread += [] if wrong is None else [wrong]
    except StoreError as error:
        unread.append(str(error))
    named, wrongs = _heads_where_named(settings)
    return found | named, unread + wrongs


def _heads_where_named(settings: Settings) -> tuple[dict[str, bytes], list[str]]:
    found: dict[str, bytes] = {}
    unread = []
    for place in load_policy(settings.policy).ledger.heads:
        try:
            if (data := head_at(settings, place)) is not None:
                found[place] = data
        except StoreError as error:
            unread.append(str(error))
    return found, unread


def _server(settings: Settings) -> bool:
    return by_server(settings) and not only_mlflow_knows()


def _tell_server(state: LedgerState, data: bytes) -> None:
    uri = state.settings.tracking_uri
    with _client(state.settings) as client:
        found = _asked(client, uri)
        if found is None:
            found = _answered(client, uri, "post", "experiments/create", json={"name": EXPERIMENT})
        known = text(found.get("experiment_id"))
        if found.get("lifecycle_stage") == "deleted":
            _answered(client, uri, "post", "experiments/restore", json={"experiment_id": known})
        if newer(state, data, _tag(found, uri), MLFLOW):
            said = {"experiment_id": known, "key": TAG, "value": data.decode()}
            _answered(client, uri, "post", "experiments/set-experiment-tag", json=said)


def _asked(client: Any, uri: str) -> dict[str, Any] | None:
    answer = _answered(client, uri, "get", "experiments/get-by-name", params={"experiment_name": EXPERIMENT})
    with _formed(uri):
        return an_object(answer["experiment"], "an experiment") if "experiment" in answer else None


def _tag(found: dict[str, Any], uri: str) -> bytes | None:
    with _formed(uri):
        tags = objects(found.get("tags"), "tags")
    return next((text(tag.get("value")).encode() for tag in tags if tag.get("key") == TAG), None)


def _client(settings: Settings) -> Any:
    import httpx

    return httpx.Client(base_url=f"{settings.tracking_uri.rstrip('/')}/api/2.0/mlflow/", **access())


def _answered(client: Any, uri: str, method: str, path: str, **asked: Any) -> dict[str, Any]:
    """The server's answer; an experiment that it does not know is an empty one."""
    import httpx

    with _formed(uri):
        try:
            return answer_of(client, method.upper(), path, **asked)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == 404:
                return {}
            raise


@contextmanager
def _formed(uri: str) -> Iterator[None]:
    """What goes wrong with the server, or has another form than its API gives it, is an error that names it."""
    import httpx

    try:
        yield
    except (httpx.HTTPError, ValueError) as error:
        got = str(error).strip() or type(error).__name__
        raise StoreError(
            f"expected the registry at {uri} to answer, got {escaped(got.splitlines()[0]):.300}; check it ({PLACE})"
        ) from error
