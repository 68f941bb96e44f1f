"""The canonical form of a submission: the files that vetgate writes in place of those that were handed in.

What is read one way by us and another way by what serves it cannot be vetted, so nothing that was handed in is served:
its every byte is understood, written anew by the one writer of its form, and only that is vetted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vetgate.errors import NotUnderstood, VetgateError
from vetgate.formats.load import checked_file, load_members
from vetgate.formats.manifest import Bytes
from vetgate.formats.readers import form_of, format_of
from vetgate.formats.sniff import ACCEPTED
from vetgate.formats.submission import REWRITTEN, Submission

T = TypeVar("T")


@dataclass(frozen=True)
class Canonical:
    """The model file that stands in place of those that were handed in, and what its description says otherwise."""

    data: bytes
    changes: Mapping[str, Any]


def canonical(members: Mapping[str, Bytes], submission: Submission) -> Canonical | None:
    """What vetgate writes in place of `members`, the inspected files of a model; None where they are that already.

    What is written is read again, and must give the very same bytes; what serves it must compute the same. Raises
    NotUnderstood.
    """
    written, data = _written(members, submission)
    hold = form_of(written).hold or _hold
    checked_file(data, written)
    if not _understood(lambda: hold(data, written, members, submission)):
        raise NotUnderstood(
            f"expected one canonical form of {submission.model}, got another when that was read; hand in {ACCEPTED}"
        )
    if data == members[submission.model] and written == submission:
        return None
    before, after = submission.model_dump(mode="json"), written.model_dump(mode="json")
    changes = {field: after[field] for field in after if after[field] != before[field]}
    if not set(changes) <= set(REWRITTEN):
        raise NotUnderstood(f"expected only {', '.join(REWRITTEN)} to be written anew, got {sorted(changes)}")
    return Canonical(data, changes)


def _written(members: Mapping[str, Bytes], submission: Submission) -> tuple[Submission, bytes]:
    return _understood(lambda: format_of(submission).canonical(members, submission))


def _hold(data: bytes, written: Submission, members: Mapping[str, Bytes], submission: Submission) -> bool:
    load_members({written.model: data}, written)
    return _written({written.model: data}, written) == (written, data)


def _understood(work: Callable[[], T]) -> T:
    try:
        return work()
    except (VetgateError, MemoryError):
        raise
    except Exception as error:
        # numbers that an attacker chose: whatever the readers of files raise, this one was not understood
        raise NotUnderstood(
            f"expected a model that can be written anew, got {type(error).__name__}: {str(error)[:300]}; "
            f"hand in {ACCEPTED}"
        ) from error
