"""The errors people meet. Each says what was expected, what was given and what to do, and carries its exit code."""

from __future__ import annotations

from typing import ClassVar


class VetgateError(Exception):
    """Base of every error a user can meet; `exit_code` is what the command line returns for it."""

    exit_code: ClassVar[int] = 2


class DefenceError(VetgateError):
    """A method could not do its work on this subject."""


class MissingInput(DefenceError):
    """A method needs a datum that the subject does not hold."""


class UnknownParameter(DefenceError):
    """A method was given a hyper-parameter that it does not have."""


class NotFinite(DefenceError):
    """A method or model produced NaN or infinity where a number was needed."""


class NotUnderstood(VetgateError):
    """A submitted file was not understood to its last byte, or does not fit its description."""

    exit_code = 3


class BadSubmission(VetgateError):
    """`submission.yaml` or the command line is wrong."""

    exit_code = 4


class BadPolicy(VetgateError):
    """A policy file is wrong."""

    exit_code = 4


class StoreError(VetgateError):
    """The store, a data set or a disk could not be read or written."""


class Denied(VetgateError):
    """The gate refuses."""

    exit_code = 1


class Stale(Denied):
    """The gate refuses because an attestation is missing its time: stale, expired or revoked."""

    exit_code = 5
