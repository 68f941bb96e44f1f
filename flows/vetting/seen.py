"""What was seen of one submission; a type of its own, so that it can be spoken of where no flow engine is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.guards.fit import Guarding
from tasks.vetting.inspect import Found
from vetgate.verdict.first_look import FirstLook
from vetgate.verdict.reasons import Reason


@dataclass(frozen=True)
class Seen:
    """What the detectors found, or why nothing could be looked for; `refused` when the files were not understood.

    `guards` are the run-time guards that were fitted for serving the model, None where none were to be; `written` is
    the manifest of what vetgate wrote in place of what was handed in, which alone is looked at. `first_look` is None
    where there are no trusted images, `weights` the digest of what the network has learned.
    """

    found: tuple[Found, ...] = ()
    refusal: Reason | None = None
    refused: bool = False
    guards: Guarding | None = None
    written: str | None = None
    first_look: FirstLook | None = None
    weights: str | None = None
