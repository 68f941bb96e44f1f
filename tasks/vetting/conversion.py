"""What vetgate wrote in place of what was handed in: signed by the vetter whose sandbox wrote it.

The files that were handed in stay in quarantine under their own manifest. What is vetted, signed, promoted and served
is a submission of its own, whose description names them, and which is believed only where a vetter signed that it was
written here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting import signed_results
from tasks.vetting.intake import Record, find_record, read_record, seeds_of, take
from vetgate.errors import NotUnderstood, StoreError
from vetgate.formats.inspect import TEXTS
from vetgate.formats.submission import FILE, dump_submission, rewritten
from vetgate.shape import Blob
from vetgate.trust.keys import TrustRoot, read_trust_root
from vetgate.trust.statements import CONVERSION


def canonical_of(store: Store, trust: TrustRoot, manifest: str) -> str | None:
    """The manifest of what vetgate wrote last in place of this one, or this one where it is canonical itself.

    None where no trusted vetter has read it yet.
    """
    found = [one for one in signed_results.every(store, trust, CONVERSION, manifest) if _names(one.found)]
    return str(max(found, key=lambda one: (one.issued, one.key)).found["canonical"]) if found else None


def is_canonical(store: Store, trust: TrustRoot, record: Record) -> bool:
    """Whether a trusted vetter signed that vetgate wrote these very bytes, or found them to be what it writes."""
    origin = record.submission.submitted or record.id
    signed = signed_results.every(store, trust, CONVERSION, origin)
    return any(one.found.get("canonical") == record.id for one in signed)


def vetted_in_place_of(settings: Settings, manifest: str) -> str | None:
    """As `canonical_of`, in the settings' store; None too where nothing is trusted yet, so that nothing was vetted."""
    if not settings.trust_root.exists():
        return None
    return canonical_of(open_store(settings), read_trust_root(settings.trust_root), manifest)


def find_vetted(settings: Settings, prefix: str) -> Record:
    """What is vetted in place of the one submission whose manifest begins so; raises BadSubmission for none or many."""
    record = find_record(open_store(settings), prefix)
    written = vetted_in_place_of(settings, record.id)
    return record if written in (None, record.id) else read_record(open_store(settings), str(written))


def keep_conversion(settings: Settings, record: Record, code: str, written: Record) -> None:
    """Sign what vetgate, by this code, wrote in place of a submission, which may be the same bytes."""
    signed_results.save(settings, CONVERSION, _about(record.id, code), {"canonical": written.id})


def converted(settings: Settings, manifest: str, code: str) -> Record | None:
    """What this very code wrote in place of a submission, or None where it did not read it yet."""
    found = signed_results.find(settings, CONVERSION, _about(manifest, code))
    if found is None or not _names(found.found):
        return None
    return read_record(open_store(settings), found.found["canonical"])


def take_written(settings: Settings, record: Record, directory: Path, model: Path, changes: Blob, room: Path) -> Record:
    """The submission of the `model` file that the sandbox wrote in place of the one in `directory`.

    Its description is ours, but for what it takes to read that file; the texts beside the model stay as they were.
    `room` is a new directory for it. Raises NotUnderstood where the sandbox changes what the model is said to be.
    """
    try:
        submission = rewritten(record.submission, changes, record.id)
    except ValueError as error:
        raise NotUnderstood(f"expected a description that can be read again, got {error}; hand in another") from error
    try:
        room.mkdir()
        shutil.copyfile(model, room / submission.model, follow_symlinks=False)
        (room / FILE).write_text(dump_submission(submission), "utf-8")
        for path in sorted(directory.iterdir()):
            if TEXTS.fullmatch(path.name):
                shutil.copyfile(path, room / path.name, follow_symlinks=False)
    except OSError as error:
        raise StoreError(f"expected to write the canonical form of {record.id}, got {error}; free space") from error
    # an origin that this installation did not seal is none of ours
    sealed = record.origin if seeds_of(settings).sealed(record.id, record.origin, record.seal) else ""
    return take(settings, room, name=record.submission.name, origin=sealed, submitted_at=record.submitted_at)


def _about(manifest: str, code: str) -> Blob:
    return {"manifest": manifest, "code": code}


def _names(found: Blob) -> bool:
    return isinstance(found.get("canonical"), str)
