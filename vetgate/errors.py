"""The errors people meet. Each says what was expected, what was given and what to do, and carries its exit code.

`code` names the kind of an error for programs: whatever decides reads it, and never the message.
"""

from __future__ import annotations

from typing import ClassVar

from vetgate.formats.plain_text import escaped


class VetgateError(Exception):
    """Base of every error a user can meet; `exit_code` is what the command line returns for it."""

    exit_code: ClassVar[int] = 2
    code: ClassVar[str] = "error"

    def __str__(self) -> str:
        # it may quote a stranger's file, and goes to terminals, logs, Prefect and MLflow
        return escaped(super().__str__())


class DefenceError(VetgateError):
    """A method could not do its work on this subject."""

    code = "method"


class MissingInput(DefenceError):
    """A method needs a datum that the subject does not hold."""

    code = "missing-input"


class UnknownParameter(DefenceError):
    """A method was given a hyper-parameter that it does not have."""

    code = "unknown-parameter"


class NotFinite(DefenceError):
    """A method or model produced NaN or infinity where a number was needed."""

    code = "not-finite"


class NotUnderstood(VetgateError):
    """A submitted file was not understood to its last byte, or does not fit its description."""

    exit_code = 3
    code = "not-understood"


class BadSubmission(VetgateError):
    """`submission.yaml` or the command line is wrong."""

    exit_code = 4
    code = "bad-submission"


class BadInput(VetgateError):
    """What a served model was asked about are no images that it takes."""

    exit_code = 4
    code = "bad-input"


class BadPolicy(VetgateError):
    """A policy file is wrong."""

    exit_code = 4
    code = "bad-policy"


class StoreError(VetgateError):
    """The store, a data set or a disk could not be read or written."""

    code = "store"


class WrongClock(VetgateError):
    """The clock of the gate's host cannot be right, so nothing is signed."""

    code = "clock"


class Denied(VetgateError):
    """The gate refuses."""

    exit_code = 1
    code = "denied"


class Altered(Denied):
    """The bytes are not those that were attested or promoted."""

    code = "altered"


class IssuedLater(Denied):
    """The gate signed this later than it is by the clock of this host: one of the two clocks is wrong."""

    exit_code = 2
    code = "issued-later"


class OtherName(Denied):
    """An attestation is for a model of another name."""

    code = "other-name"


class BadSignature(Denied):
    """No key that is trusted for it signed this."""

    code = "bad-signature"


class NotPassed(Denied):
    """The gate signed a verdict that is no PASS."""

    code = "not-passed"


class Stale(Denied):
    """The gate refuses because an attestation is missing its time: stale, expired or revoked."""

    exit_code = 5
    code = "stale"


class Revoked(Stale):
    """An attestation, waiver or approval was revoked."""

    code = "revoked"


class Removed(Stale):
    """What the ledger tells of is gone from the store, or is not as it was entered."""

    code = "removed"
