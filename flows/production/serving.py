"""Serving: from models:/prod.x@champion to the very bytes that the gate let through, or an error and nothing.

Alias, version, promotion and attestation in force, bytes: each is checked against the one before. Every file is read
once, and what was hashed is what is loaded or written out, so that swapping a file in between changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from tasks.mlflow.delivery import attested_bytes, registered_version
from tasks.mlflow.heads import whole_ledger
from tasks.records.alias_moves import misplaced
from tasks.records.coverage import Coverage, covered
from tasks.records.promotions import promotion_of
from tasks.records.proven_time import moment_after
from tasks.settings import Settings, load_settings
from tasks.store.open import open_store
from vetgate.errors import BadSubmission, Denied
from vetgate.formats.model_name import MODEL_NAME
from vetgate.trust.keys import read_trust_root, utc_now

if TYPE_CHECKING:
    from torch import nn

    from vetgate.formats.submission import Submission

PRODUCTION = "prod."
URI = re.compile(r"models:/([^/@]+)(?:@([A-Za-z0-9][A-Za-z0-9._-]{0,254})|/([1-9][0-9]{0,17}))", re.ASCII)


@dataclass(frozen=True)
class Target:
    """One version of prod.<name>, named by its number or by an alias."""

    name: str
    alias: str | None
    number: str | None

    @property
    def model(self) -> str:
        """The registered model."""
        return f"{PRODUCTION}{self.name}"


@dataclass(frozen=True, eq=False)
class Delivered:
    """The bytes of one version, hashed; `coverage` says what covers them until when."""

    target: Target
    version: str
    members: Mapping[str, bytes]
    coverage: Coverage


@dataclass(frozen=True, eq=False)
class Verified:
    """A model in eval mode, (B, C, H, W) in [0, 1] to logits (B, K), built from bytes that `coverage` covers."""

    model: nn.Module
    submission: Submission
    coverage: Coverage


def verified_load(uri: str, settings: Settings | None = None) -> Verified:
    """The model at models:/prod.NAME@ALIAS or models:/prod.NAME/VERSION, if the gate let exactly its bytes through.

    Raises Denied for what no promotion and attestation cover, Stale when these are no longer in force, StoreError when
    store or registry cannot be reached, WrongClock on a clock that is behind the ledger's last entry. Ask again before
    `coverage.until`: this answer ends then.
    """
    delivered = deliver(uri, settings or load_settings())
    return Verified(*loaded(delivered.members), delivered.coverage)


def loaded(members: Mapping[str, bytes]) -> tuple[nn.Module, Submission]:
    """The model in verified bytes, in eval mode and without gradients, and what its submission says of it."""
    from vetgate.formats.load import described, load_members

    submission = described(members)
    return load_members(members, submission).model.eval().requires_grad_(False), submission


def deliver(uri: str, settings: Settings, *, now: datetime | None = None) -> Delivered:
    """The bytes of a version in production, each file read once and hashed after that; raises as `verified_load`."""
    target, version, coverage = covered_now(uri, settings, now=now)
    return Delivered(target, version, attested_bytes(settings, coverage), coverage)


def covered_now(uri: str, settings: Settings, *, now: datetime | None = None) -> tuple[Target, str, Coverage]:
    """Which version the registry names and what covers it, no byte of it read; raises as `verified_load`."""
    target = read_uri(uri)
    version, source = registered_version(settings, target.model, target.alias, target.number)
    state = whole_ledger(settings)
    moment = moment_after(state, now or utc_now())
    coverage = covered(settings, target.name, version, source, now=moment, state=state)
    if target.alias is not None and (wrong := misplaced(state, target.name, target.alias, version, moment)):
        raise wrong
    return target, version, coverage


def manifest_of(uri: str, settings: Settings) -> str | None:
    """Which bytes the gate promoted as this version, in force or not: for reports only; None if it never did."""
    target = read_uri(uri)
    version, _ = registered_version(settings, target.model, target.alias, target.number)
    promotion = promotion_of(open_store(settings), read_trust_root(settings.trust_root), target.name, version)
    return None if promotion is None else promotion.manifest


def read_uri(uri: str) -> Target:
    """What a models:/ URI names; raises Denied for anything outside production, BadSubmission for what is no URI."""
    given = URI.fullmatch(uri)
    if given is None:
        raise BadSubmission(f"expected models:/prod.NAME@ALIAS or models:/prod.NAME/VERSION, got {uri!r:.200}")
    model, alias, number = given.groups()
    name = model.removeprefix(PRODUCTION)
    if not model.startswith(PRODUCTION) or not MODEL_NAME.fullmatch(name):
        raise Denied(f"expected a model in production, prod.NAME, got {model!r:.200}; promote it and load that")
    return Target(name, alias, number)
