"""What the keys of a folder of the store look like: whatever else lies there is no object of ours, and never read.

Who can write into one folder could otherwise lay a name there on which every command that lists it ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from tasks.store.base import BadKey, Store, check_key
from vetgate.formats.model_name import MODEL_NAME

_DIGEST = "[0-9a-f]{64}"
_NAME = MODEL_NAME.pattern
_VERSION = "[1-9][0-9]{0,17}"
# what follows the folder's name; a folder that is not named here has plain names of any form
FORMS = {
    "approvals": rf"{_DIGEST}/{_DIGEST}\.json",
    "attestations": rf"{_DIGEST}/[0-9]{{8}}T[0-9]{{6}}Z-{_DIGEST}\.json",
    "canaries": rf"{_DIGEST}\.json",
    "ledger": r"[0-9]{12}\.json",
    "promotions": rf"{_NAME}/{_VERSION}\.json",
    "registered": rf"thirdparty\.{_NAME}/{_VERSION}\.json",
    "reports": rf"{_DIGEST}/[^/]+\.html",
    "rescans": r"[0-9]{4}-[0-9]{2}-[0-9]{2}-[1-9][0-9]{0,8}\.json",
    "results": rf"{_DIGEST}/[^/]+\.json",
    "revocations": rf"{_DIGEST}\.json",
    "submissions": rf"{_DIGEST}\.json",
    "submitters": rf"{_DIGEST}/{_DIGEST}\.json",
    "tampered": rf"{_NAME}/{_VERSION}\.json",
    "waivers": rf"{_DIGEST}/{_DIGEST}\.json",
}
_FORMS = {folder: re.compile(form) for folder, form in FORMS.items()}
MOST_NAMED = 20


def well_formed(name: str) -> bool:
    """Whether a name that a store lists is a key, and has the form of the keys of its folder."""
    try:
        folder, _, rest = check_key(name).partition("/")
    except BadKey:
        return False
    form = _FORMS.get(folder)
    return form is None or form.fullmatch(rest) is not None


def keys_among(names: Iterable[str], strange: Callable[[str], object]) -> Iterator[str]:
    """The well-formed ones of the names that a store lists, in their order; `strange` is told of each other one."""
    for name in names:
        if well_formed(name):
            yield name
        else:
            strange(name)


def strange_objects(store: Store) -> list[str]:
    """What lies in the folders of FORMS under names that are no keys of theirs, as Python writes them; some of many."""
    found: list[str] = []
    for folder in FORMS:
        for _ in store.list(f"{folder}/", found.append):
            pass
    named = [repr(name) for name in found[:MOST_NAMED]]
    return named if len(found) <= MOST_NAMED else [*named, f"and {len(found) - MOST_NAMED} more"]
