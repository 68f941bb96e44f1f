"""What vetting workers find, signed by a vetter: evidence, inspections, repairs, examinations, guards, conversions.

A result lies under the digest of everything that it depends on and under that of its signed statement. Whoever can
write to the store can therefore put objects beside a result, and none in its place; what no trusted vetter signed is
found by nobody, and is computed anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from vetgate.digest import canonical_json, sha256_json
from vetgate.errors import BadSignature, Denied, StoreError
from vetgate.shape import Blob
from vetgate.trust import dsse
from vetgate.trust.keys import (
    VETTER,
    TrustRoot,
    key_id,
    load_key,
    load_or_create_key,
    load_or_create_vetter,
    read_trust_root,
    utc_now,
)
from vetgate.trust.statements import (
    CONVERSION,
    EVIDENCE,
    EXAMINATION,
    GUARDS,
    INSPECTION,
    REPAIR,
    sign_statement,
    verify_statement,
)
from vetgate.trust.strict_json import as_object, time_text

FOLDERS = {
    EVIDENCE: "evidence/",
    INSPECTION: "inspections/",
    REPAIR: "repairs/",
    EXAMINATION: "examinations/",
    GUARDS: "guards/",
    CONVERSION: "conversions/",
}
# how many objects under one digest are looked at; beyond this many it is quicker to compute the result anew
MOST = 64


@dataclass(frozen=True)
class SignedResult:
    """A result whose signature was verified: all it depends on, what was found, by whose key and when, its own name."""

    about: Blob
    found: Blob
    vetter: str
    key: str
    issued: str


def vetter_key(settings: Settings) -> Ed25519PrivateKey:
    """The key that this process signs results with; on one machine it is made and trusted on first use.

    Raises Denied when it is not trusted as a vetter's now, StoreError when there is none and the gate is elsewhere.
    """
    path, now = settings.vetter_key, utc_now()
    if path.exists():
        key = load_key(path)
    elif settings.gate_url is None:
        load_or_create_key(settings.gate_key, settings.trust_root, now=now)
        key = load_or_create_vetter(path, settings.trust_root, now=now)
    else:
        raise StoreError(
            f"expected a vetter's key at {path}, got none; make one with `vetgate keys new FILE --role vetter` where "
            "the gate is, and give its file to the workers as VETGATE_VETTER_KEY"
        )
    public = read_trust_root(settings.trust_root).key(key_id(key))
    if public.role != VETTER or not public.valid(now):
        raise Denied(
            f"expected {path} to be a {VETTER}'s key that is valid now, got a {public.role}'s from "
            f"{time_text(public.not_before)} until {time_text(public.not_after)}; make another with `vetgate keys new`"
        )
    return key


def save(settings: Settings, kind: str, about: Mapping[str, object], found: Blob) -> SignedResult:
    """Sign what was found and keep it; `about` is all that it depends on: `manifest`, mostly `method`, and what else.

    Raises Denied when this process has no key that is trusted.
    """
    key = vetter_key(settings)
    stated = {
        "issued": time_text(utc_now()),
        "manifest": about["manifest"],
        "about": dict(about),
        "result": sha256_json(found),
    }
    envelope = sign_statement(kind, stated, key)
    name = f"{sha256_json(about)}-{dsse.digest(envelope)}"
    path = f"{_folder(kind, about)}/{name}.json"
    open_store(settings).create(path, canonical_json({"signed": envelope, "found": found}))
    return SignedResult(dict(about), found, key_id(key), name, str(stated["issued"]))


def find(settings: Settings, kind: str, about: Mapping[str, object]) -> SignedResult | None:
    """The result that depends on exactly this, if a trusted vetter signed one; objects of others are passed over."""
    store, prefix = open_store(settings), f"{_folder(kind, about)}/{sha256_json(about)}-"
    names = list(islice(store.list(prefix), MOST))
    if not names:
        return None
    trust = read_trust_root(settings.trust_root)
    for name in names:
        with suppress(Denied):
            return _read(store, trust, kind, name)
    return None


def read(store: Store, trust: TrustRoot, kind: str, manifest: str, method: str | None, key: str) -> SignedResult | None:
    """The result under a key, None where there is none; raises Denied unless a trusted vetter signed exactly this."""
    return _read(store, trust, kind, f"{_folder(kind, {'manifest': manifest, 'method': method})}/{key}.json")


def every(store: Store, trust: TrustRoot, kind: str, manifest: str) -> Iterator[SignedResult]:
    """What trusted vetters signed of a submission, whatever the method; objects of others are passed over."""
    # what is of one method lies in a folder of its name
    depths = (FOLDERS[kind].count("/") + 1, FOLDERS[kind].count("/") + 2)
    for path in store.list(f"{FOLDERS[kind]}{manifest}/"):
        # the files of a repair lie deeper
        if path.endswith(".json") and path.count("/") in depths:
            with suppress(Denied):
                found = _read(store, trust, kind, path)
                if found is not None:
                    yield found


def _read(store: Store, trust: TrustRoot, kind: str, path: str) -> SignedResult | None:
    try:
        data = store.read(path)
    except KeyError:
        return None
    try:
        blob = json.loads(data)
        fields = as_object(blob, {"signed", "found"}, f"a signed {kind}")
        envelope, found = fields["signed"], fields["found"]
        digest = sha256_json(found)
    except (Denied, ValueError, RecursionError) as error:
        raise BadSignature(f"expected a signed {kind} at {path}, got another object; vet again") from error
    signed = verify_statement(envelope, trust, kind, {VETTER}, utc_now())
    about = signed.predicate.get("about")
    if not isinstance(about, dict) or not isinstance(found, dict) or signed.predicate.get("result") != digest:
        raise BadSignature(f"expected at {path} the {kind} that was signed, got another; vet again")
    key = f"{sha256_json(about)}-{signed.digest}"
    if path != f"{_folder(kind, about)}/{key}.json":
        raise BadSignature(f"expected at {path} the {kind} of this name, got another; vet again")
    return SignedResult(about, found, signed.keyid, key, str(signed.predicate["issued"]))


def _folder(kind: str, about: Mapping[str, object]) -> str:
    parts = (about.get("manifest"), about.get("method"))
    return FOLDERS[kind] + "/".join(str(part) for part in parts if part is not None)
