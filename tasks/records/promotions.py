"""What the gate let into production: one signed statement a version of prod.<name>, written before its alias is set.

It says which bytes a registered version stands for, and where they lie; nothing in the registry is believed on that.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

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
) -> Promotion:
    """Sign and keep what a version stands for; the one that is there stays, and raises Taken when it says otherwise."""
    made = Promotion(name, version, manifest, files, source, run_id, attestation, time_text(now))
    envelope = sign_statement(PROMOTION, made.predicate(), key)
    if store.create(promotion_key(name, version), canonical_json(envelope)):
        return made
    found: Promotion | None
    try:
        found = promotion_of(store, trust, name, version, now=now)
    except Denied:
        found = None
    if found is None or (found.manifest, found.files, found.source, found.run_id) != (manifest, files, source, run_id):
        raise Taken(f"expected version {version} of prod.{name} to be new, got another record of it; see the ledger")
    return found


def promotion_of(
    store: Store, trust: TrustRoot, name: str, version: str, *, now: datetime | None = None
) -> Promotion | None:
    """The promotion of a version of prod.<name>, or None; raises Denied when what is kept there is not the gate's."""
    try:
        data = store.read(promotion_key(name, version))
    except KeyError:
        return None
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
