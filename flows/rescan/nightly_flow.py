"""The nightly rescan as a flow of the gate's pool, which has the models examined by the workers of the vetting pool."""

from __future__ import annotations

from itertools import count
from typing import Any

from prefect import flow
from prefect.deployments import run_deployment

from flows.gate.question import Question, examination
from flows.production.watch import watch
from flows.rescan.batch import Examine, batch_name
from flows.rescan.nightly import exit_code, rescan
from flows.rescan.stale import Present
from tasks.settings import Settings, load_settings
from tasks.vetting.signed_results import find
from vetgate.digest import sha256_json
from vetgate.errors import StoreError
from vetgate.shape import Blob
from vetgate.trust.statements import EXAMINATION

EXAMINE = "examine/default"
AT_ONCE = 8
# the pool may be busy with submissions; a run that was lost is missed after this long
WAIT_SECONDS = 6 * 3600.0
POLL_SECONDS = 2.0


@flow(name="rescan", persist_result=True, result_serializer="json")
def rescan_flow(at_once: int = AT_ONCE, name: str | None = None) -> Blob:
    """A rescan, of prod.<name> only where one is given.

    It ends as failed when a canary came out wrong or something could not be done.
    """
    blob = rescan_service(load_settings(), name, at_once=at_once)
    if exit_code(blob) in (2, 3):
        why = [canary["wrong"] for canary in blob["canaries"] if canary["wrong"]] or blob["errors"]
        raise StoreError(f"expected batch {blob['batch']} to be done, got {'; '.join(why)}; see rescans/ in the store")
    return blob


def rescan_service(settings: Settings, name: str | None = None, *, at_once: int = AT_ONCE) -> Blob:
    """A batch whose models are examined by the service's workers, `at_once` of them at a time."""
    return rescan(settings, on_the_pool(settings), name, at_once=at_once)


def on_the_pool(settings: Settings) -> Examine:
    """Examine by a run of the deployment that does so, on whatever machine, and read what its vetter signed."""
    seen = watch(settings)
    about = [Present.of(seen).digest, batch_name(seen)]

    def examine(settings: Settings, manifest: str, run: str) -> Question:
        for attempt in count(1):
            key = sha256_json([*about, manifest, run, attempt])
            done = _examination(settings, manifest, run, key)
            if done is None:
                return _run(settings, manifest, run, key)
            # what a batch that was killed had examined counts, unless a method failed then
            if not done.failures:
                return done
        raise AssertionError("unreachable")

    return examine


def _run(settings: Settings, manifest: str, run: str, key: str) -> Question:
    parameters = {"manifest_sha256": manifest, "run": run, "key": key}
    try:
        # a plain run, not a subflow: it must go on, and count, when this batch is killed
        found: Any = run_deployment(
            EXAMINE, parameters=parameters, timeout=WAIT_SECONDS, poll_interval=POLL_SECONDS, as_subflow=False
        )
    except Exception as error:
        raise StoreError(f"expected Prefect to run {EXAMINE}, got {error}; see `vetgate up --check`") from error
    done = _examination(settings, manifest, run, key)
    if done is None:
        state = found.state.name if found.state else "no state"
        raise StoreError(f"expected an examination of {manifest}, got a run that ended {state}; see its log in Prefect")
    return done


def _examination(settings: Settings, manifest: str, run: str, key: str) -> Question | None:
    # what no vetter signed for exactly this is passed over, and examined
    signed = find(settings, EXAMINATION, examination(manifest, run, key))
    return None if signed is None else Question.from_json(signed.found)
