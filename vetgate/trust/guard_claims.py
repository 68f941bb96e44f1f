"""What an attestation says of run-time guards: which file holds them, and what each of them may reject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vetgate.errors import Denied, StoreError
from vetgate.shape import Number, Shaped
from vetgate.trust.strict_json import as_sha256


@dataclass(frozen=True)
class AttestedGuard(Shaped):
    """A guard in the file: the share of clean inputs that it may reject, and the digest of the code that it runs."""

    name: str
    rate: Number
    code: str


@dataclass(frozen=True)
class AttestedGuards(Shaped):
    """The SHA-256 of the file, its guards in its order, what becomes of an input on which one alarms, who fitted them.

    `rate` is the share of clean inputs that all of them together may reject, `vetter` the id of the key that signed,
    `settings` the digest of what they were fitted by: policy, parameters, code.
    """

    WHAT = "the guards of an attestation"

    package: str
    chosen: tuple[AttestedGuard, ...]
    rate: Number
    action: str
    vetter: str
    settings: str


def guards_in(claims: Mapping[str, Any]) -> AttestedGuards | None:
    """What verified claims say of guards; None where they name none, as those of earlier versions.

    Raises Denied for anything else.
    """
    if claims.get("guards") is None:
        return None
    try:
        found = AttestedGuards.from_json(claims["guards"])
    except StoreError as error:
        raise Denied(f"{error}; vet the model again") from error
    as_sha256(found.package, "package")
    return found
