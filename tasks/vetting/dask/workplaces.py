"""The workplaces of a worker that computes parts of vettings which others lead: set up for a part, kept for the next.

A worker fetches the submission from the store and splits the reference data itself. What it holds must be what the one
who asks holds, by SHA-256; otherwise it refuses.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tasks.sandbox.host import Limits
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting.inspect import Case, Data
from tasks.vetting.intake import fetch, read_record, seed_of
from tasks.vetting.prepare import prepare
from tasks.vetting.workplace import Workplace, set_up
from vetgate.digest import sha256_json
from vetgate.errors import StoreError

# how long an unused workplace holds its memory
LINGER_SECONDS = 60.0


@dataclass(eq=False)
class Place:
    """A workplace with one submission in it, and the case with the paths as they are here."""

    key: str
    stack: ExitStack
    workplace: Workplace
    case: Case


_idle: list[Place] = []
_lock = threading.Lock()


@contextmanager
def place_for(settings: Settings, case: Case, sizes: dict[str, int]) -> Iterator[Place]:
    """A workplace for a case that was described elsewhere; no other part uses it meanwhile."""
    key = sha256_json([str(settings.home), case.manifest, case.data.source, sizes])
    place = _taken(key) or _laid_out(settings, case, sizes, key)
    try:
        # run, limits and the like are the asker's; only the paths are our own
        place.case = replace(case, directory=place.case.directory, data=place.case.data)
        yield place
    except BaseException:
        place.stack.close()
        raise
    _keep(place)


def clear() -> None:
    """Clear away the workplaces that wait for another part."""
    with _lock:
        found, _idle[:] = list(_idle), []
    for place in found:
        place.stack.close()


def case_to_json(case: Case) -> dict[str, Any]:
    """What others need to know of a case: no path of this host is in it, and no seed, which each computes itself."""
    return {
        "manifest": case.manifest,
        "run": case.run,
        "limits": case.limits.to_json(),
        "source": case.data.source,
    }


def case_from_json(settings: Settings, blob: dict[str, Any]) -> Case:
    """The case that `case_to_json` described, its paths left open."""
    record = read_record(open_store(settings), blob["manifest"])
    return Case(
        manifest=record.id,
        directory="",
        submission=record.submission.model_dump(mode="json"),
        seed=seed_of(settings, record, blob["run"]),
        limits=Limits(**blob["limits"]),
        data=Data(source=blob["source"]),
        run=blob["run"],
    )


def _taken(key: str) -> Place | None:
    with _lock:
        found = next((place for place in _idle if place.key == key), None)
        if found is not None:
            _idle.remove(found)
            return found
    # a workplace of another vetting would only hold memory that this one needs
    clear()
    return None


def _laid_out(settings: Settings, case: Case, sizes: dict[str, int], key: str) -> Place:
    record = read_record(open_store(settings), case.manifest)
    with ExitStack() as stack:
        workplace = set_up(settings, stack)
        workplace.sandbox.start()
        directory = workplace.given / "submission"
        fetch(open_store(settings), record, directory)
        data = Data(**prepare(settings, record.submission, sizes))
        _same(case.data.source, data.source)
        own = replace(case, directory=str(directory), submission=record.submission.model_dump(mode="json"), data=data)
        return Place(key, stack.pop_all(), workplace, own)


def _same(wanted: dict[str, Any], got: dict[str, Any]) -> None:
    for what in ("sha256", "splits", "training"):
        if wanted.get(what) != got.get(what):
            raise StoreError(
                f"expected reference data of {what} {wanted.get(what)} on this worker, got {got.get(what)}; "
                "register the same file with `vetgate data add` here"
            )


def _keep(place: Place) -> None:
    with _lock:
        _idle.append(place)
    timer = threading.Timer(LINGER_SECONDS, _let_go, [place])
    timer.daemon = True
    timer.start()


def _let_go(place: Place) -> None:
    with _lock:
        if place not in _idle:
            return
        _idle.remove(place)
    place.stack.close()
