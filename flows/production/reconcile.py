"""Reconcile: whatever resolves to a version in production and is not the gate's doing, or not covered, is taken back.

The registry lets every writer move an alias, set a stage, add a version and hide a model from its lists, and does not
say who did. So every alias is held against the gate's newest signed move of it and what the gate says of its version
now, soon after it was moved and again every few minutes. The gate sets no stage and hides nothing. A version that it
never promoted, or that nothing covers any more, is removed, because its number and perhaps `latest` would resolve to
it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from itertools import chain

from flows.production.watch import (
    Standing,
    Watch,
    coverage,
    coverages,
    outlived,
    standings,
    unforeseen,
    watch,
)
from tasks.mlflow.aliases import Registered, promotable, registered, source_of, tagged_as_prompts
from tasks.mlflow.demote import BYPASS, DEMOTION, TakenBack, settle, standing_again, take_back
from tasks.mlflow.guarded import Moved, follow_aliases
from tasks.mlflow.heads import publish_head
from tasks.mlflow.listing import IS_PROMPT
from tasks.records.attestations import newest_attestation, revocation_of
from tasks.records.coverage import Coverage
from tasks.records.promotions import promotion_of, promotions_of
from tasks.settings import Settings
from vetgate.errors import Denied, Removed, Stale, StoreError, VetgateError
from vetgate.formats.model_name import MODEL_NAME
from vetgate.shape import Blob
from vetgate.trust import attest

logger = logging.getLogger(__name__)
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"


def reconcile(settings: Settings, name: str | None = None, *, now: datetime | None = None) -> Blob:
    """What was checked and taken back, of every prod.* alias or of those of prod.<name>; again, it changes nothing.

    Raises StoreError when registry or store could not be read, Removed when the ledger is broken; what could be read is
    settled all the same. An outage takes nothing back, and a broken ledger only what the gate never promoted. Raises
    WrongClock before anything is taken back.
    """
    seen = watch(settings, now)
    hidden = tagged_as_prompts(settings, name)
    found = registered(settings, name)
    held = [item for item in found if item.named]
    answers = list(zip(held, coverages(seen, held), strict=True))
    errors: list[VetgateError] = [answer for _, answer in answers if isinstance(answer, StoreError)]
    errors += [seen.state] if isinstance(seen.state, Removed) else []
    fine: list[tuple[Registered, Coverage]] = []
    wrong: list[Callable[[], list[TakenBack]]] = []
    for item, answer in answers:
        if isinstance(answer, StoreError):
            continue
        try:
            names = standings(seen, item, answer)
        except Exception as error:
            errors.append(unforeseen(item, error))
            continue
        if isinstance(answer, Coverage) and all(isinstance(name.answer, Coverage) for name in names):
            fine.append((item, answer))
        # one name at a time: one that the registry does not let go must not keep the others of its version
        wrong += [
            partial(_off, seen, item, held, answer, name, name.answer)
            for name in names
            if isinstance(name.answer, Denied) and name.answer is not seen.state
        ]
    nameless = outlived(seen, [item for item in found if not item.named], errors.append)
    taken: list[TakenBack] = []
    settled: list[TakenBack] = []
    jobs: Iterator[Callable[[], list[TakenBack]]] = chain(
        wrong,
        (partial(_shown_again, settings, *item) for item in hidden),
        (partial(_unregistered, seen, item, why) for item, why in nameless),
    )
    for job in jobs:
        if done := _tried(errors, job):
            taken += done
            # at once: until the ledger has it, what an alias was put back to is not where the gate last put it
            settled += _tried(errors, partial(settle, settings))
    # what a run that was killed left
    settled += _tried(errors, partial(settle, settings))
    errors += _stood_again(settings, taken)
    followed: list[Moved] = []
    try:
        # all each time: a run may have ended between taking back and this
        followed, unknown = follow_aliases(settings, name, broken=isinstance(seen.state, Removed))
        errors += unknown
    except StoreError as error:
        errors.append(error)
    publish_head(settings)
    if errors:
        raise (Removed if isinstance(seen.state, Removed) else StoreError)(
            f"expected an answer for all of {len(held)} versions in production, got {len(errors)} errors, the first: "
            f"{errors[0]}; {len(taken)} were taken back; run `vetgate reconcile` again"
        ) from errors[0]
    return {
        "checked": len(held),
        "covered": len(fine),
        "grace": [
            {"name": item.name, "version": item.version, "until": answer.until.isoformat()}
            for item, answer in fine
            if answer.grace
        ],
        "taken_back": [item.to_json() for item in taken],
        "recorded": len(settled),
        "guarded": [item.to_json() for item in followed],
    }


def _stood_again(settings: Settings, taken: Iterable[TakenBack]) -> list[StoreError]:
    try:
        return standing_again(settings, taken) if taken else []
    except StoreError as error:
        return [error]


def _shown_again(settings: Settings, name: str, version: str) -> list[TakenBack]:
    """Take off a model or a version the tag by which MLflow's searches leave it out."""
    what = f"version {version} of prod.{name}" if version else f"prod.{name}"
    reason = f"expected {what} to be a model, got one that MLflow is told to hide as a prompt; take tag {IS_PROMPT} off"
    done = take_back(settings, name, version, kind=BYPASS, reason=reason, tag=IS_PROMPT)
    return [] if done is None else [done]


def _off(
    seen: Watch, item: Registered, held: Iterable[Registered], answer: Coverage | Denied, name: Standing, why: Denied
) -> list[TakenBack]:
    """Take off a version what resolves to it by no right, for the reason that is given.

    An alias is put back to where the gate last put it, or to what stood there before, if that may stay.
    """
    kind = DEMOTION if why is answer and _by_the_gate(seen, item, why) else BYPASS
    aliases = {alias: other.version for other in held if other.name == item.name for alias in other.aliases}
    to = None if name.alias is None else _successor(seen, item, name.alias, aliases, kind)
    done = take_back(
        seen.settings,
        item.name,
        item.version,
        alias=name.alias,
        stage=name.stage,
        kind=kind,
        reason=str(why),
        to=to,
    )
    return [] if done is None else [done]


def _unregistered(seen: Watch, item: Registered, why: Denied) -> list[TakenBack]:
    """Remove a version from the registry."""
    kind = DEMOTION if _by_the_gate(seen, item, why) else BYPASS
    done = take_back(seen.settings, item.name, item.version, kind=kind, reason=str(why))
    return [] if done is None else [done]


def _by_the_gate(seen: Watch, item: Registered, why: Denied) -> bool:
    return isinstance(why, Stale) or _was_let_in(seen, item)


def _was_let_in(seen: Watch, item: Registered) -> bool:
    """Whether the gate promoted exactly this and its own later verdict is what speaks against it."""
    if not promotable(item.name, item.version) or isinstance(seen.state, Removed):
        return False
    try:
        promotion = promotion_of(seen.store, seen.trust, item.name, item.version, now=seen.now)
        newest = newest_attestation(seen.state, promotion.manifest) if promotion else None
        if promotion is None or newest is None or promotion.source != item.place:
            return False
        verified = attest.verify(
            newest.envelope,
            seen.trust,
            name=item.name,
            files=promotion.files,
            manifest=promotion.manifest,
            now=seen.now,
            revoked=revocation_of(seen.state, newest.envelope),
        )
    except Denied:
        return False
    return verified["verdict"] not in attest.ADMITTED


def _successor(seen: Watch, item: Registered, alias: str, aliases: dict[str, str], kind: str) -> str | None:
    """The version that the alias goes back to: covered, not itself in its grace, and not another alias's by right."""
    if not MODEL_NAME.fullmatch(item.name):
        return None
    other = aliases.get(CHAMPION) if alias == CHALLENGER else None
    for version in dict.fromkeys(_candidates(seen, item.name, alias, aliases, kind)):
        if not promotable(item.name, version) or version in (item.version, other):
            continue
        source = source_of(seen.settings, item.name, version)
        if source is None:
            continue
        try:
            if not coverage(seen, item.name, version, source).grace:
                return version
        except Exception:
            # what cannot be read now is nothing to go back to, and no reason to leave in place what nothing covers
            continue
    return None


def _candidates(seen: Watch, name: str, alias: str, aliases: dict[str, str], kind: str) -> Iterator[str]:
    """Where the gate last put the alias, what was there before, and for a champion what else was promoted."""
    last, before = _last_move(seen, name, alias)
    if alias == PREVIOUS:
        yield from _last_move(seen, name, CHAMPION)[1:]
    yield from (last, before)
    if alias != CHAMPION:
        return
    previous = aliases.get(PREVIOUS, "")
    if kind == DEMOTION:
        yield previous
    # what is under another alias was never promoted as champion, or is no longer
    elsewhere = {version for other, version in aliases.items() if other != CHAMPION}
    promoted = promotions_of(seen.store, seen.trust, name, now=seen.now)
    yield from (promotion.version for promotion in promoted if promotion.version not in elsewhere)
    yield previous


def _last_move(seen: Watch, name: str, alias: str) -> tuple[str, str]:
    """The version that the gate last put an alias on, and the one before; empty where there is none."""
    move = None if isinstance(seen.state, Removed) else seen.state.move(name, alias)
    return ("", "") if move is None else (move.version or "", move.before or "")


def _tried(errors: list[VetgateError], work: Callable[[], list[TakenBack]]) -> list[TakenBack]:
    """One that fails must not keep the others in production; the whole still ends as failed."""
    try:
        found: list[TakenBack] = work()
    except Denied as error:
        # the ledger is not as it was left: what was taken back stays taken back, and an operator must look
        errors.append(StoreError(str(error)))
    except StoreError as error:
        errors.append(error)
    except Exception as error:
        logger.exception("not foreseen", exc_info=error)
        errors.append(StoreError(f"expected to take back what is wrong, got {error!r:.300}; see the log"))
    else:
        return found
    return []
