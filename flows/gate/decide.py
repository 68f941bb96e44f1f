"""The gate's own process: it holds the signing key, parses no model, and judges what it reads from the store itself.

`python -m flows.gate.decide` answers one JSON request a line. On one machine it runs as the same user as everything
else: duties are then not separated, and the attestation says so.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from typing import IO

from flows.gate.issue import issue_waived
from flows.gate.judgement import decide
from flows.gate.question import Question
from tasks.mlflow.heads import check_end, publish_head
from tasks.program import ended
from tasks.records.ledger_entries import catch_up, note
from tasks.settings import Settings, load_settings
from tasks.store.key_forms import well_formed
from tasks.store.open import open_store
from vetgate.errors import BadSubmission, VetgateError
from vetgate.shape import Blob
from vetgate.trust.strict_json import SHA256

PEOPLE_SIGN = ("approvals", "revocations", "waivers")


def main() -> None:
    """Answer requests until standard input ends."""
    answers: IO[str] = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = load_settings()
    make_ready(settings)
    for line in sys.stdin:
        print(json.dumps(answer(settings, json.loads(line)), allow_nan=False), file=answers, flush=True)


def make_ready(settings: Settings) -> None:
    """Enter what a crash left out of the ledger, while no caller waits for an answer yet."""
    try:
        catch_up(settings)
    except VetgateError as error:
        # the caller is told as well
        logging.getLogger(__name__).warning("the ledger could not be caught up: %s", error)


def answer(settings: Settings, request: Blob, *, separated: bool = False) -> Blob:
    """What the gate says to one request; an error as {"error", "kind"}. `separated`: the asker is another user.

    Operations (`op`): decide (the default), record (enter what a person signed and stored under `key`; with `manifest`,
    issue a waiver that it completes).
    """
    try:
        operation = request.get("op", "decide")
        check_end(settings)
        if operation == "decide":
            question = Question.from_json({name: value for name, value in request.items() if name != "op"})
            decided = decide(settings, question, separated=separated).to_json()
            publish_head(settings, quickly=True)
            return decided
        if operation == "record":
            return record(settings, *_signed_by_people(settings, request))
        raise BadSubmission(
            f"expected the operation decide or record, got {operation!r:.80}; ask with flows.gate.client"
        )
    except VetgateError as error:
        return {"error": str(error), "kind": type(error).__name__}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"the gate met {type(error).__name__}: {error}; see its log", "kind": "StoreError"}


def _signed_by_people(settings: Settings, request: Blob) -> tuple[str, str | None]:
    """Key and manifest of a request to record something; raises BadSubmission where no such thing can be recorded."""
    key, manifest = request.get("key"), request.get("manifest")
    if not isinstance(key, str) or key.partition("/")[0] not in PEOPLE_SIGN or not well_formed(key):
        raise BadSubmission(f"expected the key of a waiver, approval or revocation, got {key!r:.120}; store it first")
    if not (manifest is None or (isinstance(manifest, str) and SHA256.fullmatch(manifest))):
        raise BadSubmission(f"expected the SHA-256 of a manifest, got {manifest!r:.120}; ask with flows.gate.client")
    if not open_store(settings).exists(key):
        raise BadSubmission(f"expected what a person signed under {key}, got nothing there; store it first")
    return key, manifest


def record(settings: Settings, key: str, manifest: str | None = None) -> Blob:
    """Enter what a person signed and stored, and issue the WAIVED verdict that is then due, or say what is lacking."""
    if manifest is not None:
        catch_up(settings, manifest)
    entry = note(settings, key)
    waived = None if manifest is None else issue_waived(settings, manifest)
    publish_head(settings, quickly=True)
    return {"key": key, "entry": entry.sequence, "waived": waived}


if __name__ == "__main__":
    sys.exit(ended(main))
