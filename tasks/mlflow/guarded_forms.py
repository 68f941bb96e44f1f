"""Which version of guarded.<name> is the guarded form of which of prod.<name>, whatever its tags say.

That is told by where its files lie: in the run of the promotion that the gate signed, in the folder of a verdict that
the ledger holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from tasks.mlflow.answers import text
from tasks.mlflow.artifacts import place_of
from tasks.mlflow.client import is_ours
from tasks.mlflow.listing import NUMBER, loaded_from
from tasks.mlflow.promoted import MODEL
from tasks.records.alias_moves import is_recent
from tasks.records.attestations import digests_on
from tasks.records.coverage import entered_promotion
from tasks.records.ledger_state import LedgerState
from tasks.records.promotions import Promotion
from tasks.settings import Settings
from vetgate.errors import Denied
from vetgate.trust.keys import utc_now

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

# which version of prod.<name> it is the guarded form of: for people, and for where to look
PROMOTED_TAG = "vet.promoted_version"


class Forms:
    """The versions of guarded.<name> that are guarded forms of what the gate promoted."""

    def __init__(
        self, client: MlflowClient, settings: Settings, state: LedgerState, name: str, versions: Sequence[ModelVersion]
    ) -> None:
        self._client, self._settings, self._state, self._name = client, settings, state, name
        self._versions = versions

    def under(self, alias: str, number: str, now: datetime) -> str | None:
        """The form that an alias of prod.<name> on this version stands for; None where there is none.

        A moment after a promotion that is the one before, since the new one is registered last.
        """
        found = self.of(number)
        move = None if found else self._state.move(self._name, alias)
        if move is not None and move.before is not None and is_recent(move, now):
            found = self.of(move.before)
        return found[0] if found else None

    def of(self, number: str) -> list[str]:
        """The forms of a version of prod.<name>, by the order of the verdicts in them, the newest first."""
        promotion = self._promotion(number)
        place = None if promotion is None else self._place(promotion)
        if promotion is None or place is None:
            return []
        sources = [f"{place}/{folder_of(digest)}" for digest in reversed(digests_on(self._state, promotion.manifest))]
        return [
            text(version.version)
            for source in sources
            for version in reversed(self._versions)
            if lies_at(self._client, version, source)
        ]

    def is_one(self, number: str) -> bool:
        """Whether this version of guarded.<name> is the form of any; its tag is only where to look."""
        said = (v.tags.get(PROMOTED_TAG) for v in self._versions if text(v.version) == number)
        return any(number in self.of(text(promoted)) for promoted in said)

    def _promotion(self, number: str) -> Promotion | None:
        try:
            return entered_promotion(self._state, self._name, number, utc_now()) if NUMBER.fullmatch(number) else None
        except Denied:
            return None

    def _place(self, promotion: Promotion) -> str | None:
        """Where the run of a promotion keeps its artifacts: what the gate signed, if that is where the bytes lie."""
        place, _, folder = promotion.source.rpartition("/")
        if folder == MODEL:
            return place
        place = place_of(self._client, promotion.run_id)
        return place if is_ours(self._settings, place) else None


def folder_of(attestation: str) -> str:
    """The folder of a run with the guarded form by the verdict with this digest."""
    return f"guarded-{attestation[:16]}"


def lies_at(client: MlflowClient, version: ModelVersion, source: str) -> bool:
    """Whether a version says so, and MLflow loads it from there."""
    return text(version.source) == source and loaded_from(client, version.name, text(version.version)) == source
