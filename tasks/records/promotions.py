"""What the gate let into production: one signed statement a version of prod.<name>, written before its alias is set.

It says which bytes a registered version stands for, and where they lie; nothing in the registry is believed on that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.records.ledger_state import Told
from tasks.store.base import Store
from vetgate.digest import canonical_json
from vetgate.errors import Denied
from vetgate.trust import dsse
from vetgate.trust.keys import GATE, TrustRoot, utc_now
from vetgate.trust.statements import PROMOTION, sign_statement, verify_statement
from vetgate.trust.strict_json import as_object, as_sha256, as_text, time_text


class Taken(Denied):
    """The number of this version already stands for other bytes, or for another place."""

    code = "taken"


@dataclass(frozen=True)
class Promotion:
    """One version of prod.<name>: its bytes (path to SHA-256, and their manifest's) and where they lie.

    `attestation` is the digest of the verdict that let it through, `issued` the moment as text.
    """

    name: str
    version: str
    manifest: str
    files: Mapping[str, str]
    source: str
    run_id: str
    attestation: str
    issued: str

    def predicate(self) -> dict[str, Any]:
        """The fields as the signed statement holds them."""
        return {**self.__dict__, "files": dict(self.files)}


FIELDS = frozenset(Promotion.__dataclass_fields__)


def save_promotion(
    store: Store,
    trust: TrustRoot,
    key: Ed25519PrivateKey,
    *,
    name: str,
    version: str,
    manifest: str,
    files: Mapping[str, str],
    source: str,
    run_id: str,
    attestation: str,
    now: datetime,
    told: Told | None = None,
) -> str:
    """Sign and keep what a version stands for; the SHA-256 of what is kept. What is there already stays.

    Raises Taken where that says otherwise, or is not as the ledger has `told` of it.
    """
    made = Promotion(name, version, manifest, files, source, run_id, attestation, time_text(now))
    data = canonical_json(sign_statement(PROMOTION, made.predicate(), key))
    if told is None and store.create(promotion_key(name, version), data):
        return hashlib.sha256(data).hexdigest()
    taken = Taken(f"expected version {version} of prod.{name} to be new, got another record of it; see the ledger")
    try:
        data = store.read(promotion_key(name, version))
        found = promotion_in(name, version, data, trust, now=now)
    except (KeyError, Denied) as error:
        raise taken from error
    sha256 = hashlib.sha256(data).hexdigest()
    if (found.manifest, found.files, found.source, found.run_id) != (manifest, files, source, run_id):
        raise taken
    if told is not None and told.sha256 != sha256:
        raise taken
    return sha256


def promotion_of(
    store: Store, trust: TrustRoot, name: str, version: str, *, now: datetime | None = None
) -> Promotion | None:
    """The promotion of a version of prod.<name>, or None; raises Denied when what is kept there is not the gate's."""
    try:
        data = store.read(promotion_key(name, version))
    except KeyError:
        return None
    return promotion_in(name, version, data, trust, now=now)


def promotion_in(name: str, version: str, data: bytes, trust: TrustRoot, *, now: datetime | None = None) -> Promotion:
    """The promotion of a version of prod.<name> in the bytes of its object; raises Denied when it is not the gate's."""
    said = verify_statement(dsse.read_envelope(data), trust, PROMOTION, {GATE}, now or utc_now()).predicate
    fields = as_object(said, FIELDS, "a promotion")
    if (fields["name"], fields["version"]) != (name, version):
        raise Denied(
            f"expected the promotion of {name} {version}, got that of {fields['name']} {fields['version']}; remove it"
        )
    files = fields["files"]
    if not isinstance(files, dict):
        raise Denied(f"expected files by their paths, got {type(files).__name__}; promote again")
    for path, sha256 in files.items():
        as_sha256(sha256, path)
    for field in ("source", "run_id"):
        as_text(fields[field], field)
    for field in ("manifest", "attestation"):
        as_sha256(fields[field], field)
    return Promotion(**fields)


def promotions_of(store: Store, trust: TrustRoot, name: str, *, now: datetime | None = None) -> list[Promotion]:
    """Every version of prod.<name> that the gate promoted, the newest first; what is not its own is left out."""
    found = []
    for key in store.list(f"promotions/{name}/"):
        version = key.rpartition("/")[2].removesuffix(".json")
        with suppress(Denied, KeyError):
            promotion = promotion_of(store, trust, name, version, now=now)
            found += [promotion] if promotion is not None else []
    return sorted(found, key=lambda p: (len(p.version), p.version), reverse=True)


def promotion_key(name: str, version: str) -> str:
    """Where the promotion of a version of prod.<name> is kept."""
    return f"promotions/{name}/{version}.json"
