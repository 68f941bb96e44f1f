"""Guarded serving: the bytes that the gate let through, behind the guards that their attestation names.

The file with the guards is read once; it is the one whose digest was signed, or nothing is served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.production.serving import deliver, loaded
from tasks.guards.package_file import package_bytes
from tasks.records.coverage import Coverage
from tasks.settings import Settings, load_settings
from vetgate.digest import code_digest
from vetgate.errors import DefenceError, Denied, NotUnderstood, Stale
from vetgate.role import guard_roles
from vetgate.trust.guard_claims import AttestedGuards, guards_in

if TYPE_CHECKING:
    from vetgate.formats.submission import Submission
    from vetgate.guard.guarded import Action, Guarded
    from vetgate.guard.package import Package


@dataclass(frozen=True, eq=False)
class GuardedModel:
    """A model behind its guards, what its submission says of it, and what covers it until when."""

    guarded: Guarded
    submission: Submission
    coverage: Coverage

    @property
    def classes(self) -> int:
        """How many classes it tells apart."""
        return self.submission.n_classes

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its classes, their numbers where it has none."""
        return self.submission.class_names

    @property
    def rates(self) -> Mapping[str, float]:
        """The share of clean inputs that each guard may reject, by name."""
        return {one.guard: float(one.rate or 0) for one in self.guarded.package.guards}


def guarded_load(uri: str, settings: Settings | None = None, *, action: Action | None = None) -> GuardedModel:
    """The model at models:/prod.NAME@ALIAS or models:/prod.NAME/VERSION behind the guards that its attestation names.

    `action` is what becomes of an input that a guard rejects, by default what the policy of its vetting said. Raises as
    `flows.production.serving.verified_load`; Denied where the attestation names no guards, or none that the action
    needs; Stale where they were fitted by other code than this; Altered where their file is not the attested one.
    """
    settled = settings or load_settings()
    delivered = deliver(uri, settled)
    coverage = delivered.coverage

    def package(sha256: str) -> bytes:
        return package_bytes(settled, coverage.manifest, sha256)

    found = behind_guards(delivered.members, coverage.claims, coverage.manifest, package, action=action)
    return GuardedModel(found.guarded, found.submission, coverage)


@dataclass(frozen=True, eq=False)
class Behind:
    """A model behind its guards, and what its submission says of it."""

    guarded: Guarded
    submission: Submission


def behind_guards(
    members: Mapping[str, bytes],
    claims: Mapping[str, Any],
    manifest: str,
    package: Callable[[str], bytes],
    *,
    action: Action | None = None,
) -> Behind:
    """The model in verified bytes behind the guards that verified claims on it name.

    `package` gives the bytes of the file with this SHA-256. Raises as `guarded_load` for what it cannot be.
    """
    stated = guards_in(claims)
    if stated is None:
        raise Denied(
            f"expected an attestation of {manifest} that names guards, got one without; name some under "
            "`guard` in the policy and run `vetgate vet` on it, or load it without guards by verified_load"
        )
    for one in stated.chosen:
        # a cut says nothing of what other code scores
        if one.name not in guard_roles() or code_digest("guard", one.name) != one.code:
            raise Stale(
                f"expected {one.name} as it was when {manifest} was vetted, got another; run `vetgate vet` on "
                "it, or load it with the version of vetgate and torch that vetted it"
            )
    from vetgate.guard.guarded import Action, Guarded

    held = _package(package(stated.package), manifest, stated)
    model, submission = loaded(members)
    try:
        guarded = Guarded(model, held, submission.input_shape, action=action or Action(stated.action))
    except DefenceError as error:
        raise Denied(f"{error}; the attestation names {', '.join(one.name for one in stated.chosen)}") from error
    return Behind(guarded, submission)


def _package(data: bytes, manifest: str, stated: AttestedGuards) -> Package:
    """The guards in the attested file; raises Denied unless they are those that were attested."""
    from vetgate.guard.package import from_bytes

    try:
        package = from_bytes(data, manifest=manifest)
    except NotUnderstood as error:
        raise Denied(f"expected the attested guards of {manifest} in their file, got another: {error}") from error
    held = [(fitted.guard, fitted.rate) for fitted in package.guards]
    if held != [(one.name, one.rate) for one in stated.chosen]:
        raise Denied(f"expected {list(stated.chosen)} in the attested file, got {held}; vet {manifest} again")
    return package
