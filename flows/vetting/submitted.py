"""Take in what was registered in MLflow: the payload of a webhook names it, its bytes are read from MLflow."""

from __future__ import annotations

from functools import partial

from prefect import flow

from flows.vetting.submit import refuse_alike
from tasks import events
from tasks.mlflow import submitted as registered
from tasks.settings import Settings, load_settings
from tasks.store.lease import leased
from tasks.store.open import open_store
from tasks.vetting import intake
from tasks.vetting.intake import Record
from vetgate.errors import BadSubmission, NotUnderstood, StoreError
from vetgate.shape import Blob

# with pauses of up to an hour between them: longer than an outage of a night
MOST_TRIES = 20


@flow(name="take-registered", flow_run_name="take-{model}-{version}", persist_result=True, result_serializer="json")
def take_registered(model: str, version: str) -> Blob:
    """Submit a version of thirdparty.<name>; noted once, so that doing it again changes nothing."""
    return take_version(load_settings(), model, str(version))


def take_version(settings: Settings, model: str, version: str) -> Blob:
    """The note on a version, after submitting it if there was none.

    Raises StoreError where it cannot be read now; after MOST_TRIES of these it is refused.
    """
    store = open_store(settings)
    if registered.is_noted(store, model, version):
        return registered.noted(store, model, version)
    try:
        with leased(settings, registered.work_of(model, version), wait=settings.lease_seconds) as lease:
            record = _submitted(settings, model, version, lease.attempt)
    except (BadSubmission, NotUnderstood) as error:
        registered.note(store, model, version, {"refused": str(error)})
        registered.tag(settings, model, version, {"vet.verdict": "INCONCLUSIVE", "vet.reason": str(error)})
        return {"refused": str(error)}
    what = {"manifest_sha256": record.id}
    registered.note(store, model, version, what)
    registered.tag(settings, model, version, {"vet.manifest_sha256": record.id})
    events.emit(events.SUBMISSION_ACCEPTED, f"submission.{record.id}", what, once="accepted")
    return what


def _submitted(settings: Settings, model: str, version: str, attempt: int) -> Record:
    try:
        with intake.workroom(settings) as room:
            given = registered.download(settings, model, version, room / "downloaded")
            name = model.removeprefix(registered.PREFIX)
            return intake.take(settings, given, name=name, check_name=partial(refuse_alike, settings))
    except StoreError as error:
        # an outage passes; what only this version makes fail does not
        if attempt < MOST_TRIES:
            raise
        raise NotUnderstood(
            f"expected version {version} of {model} to be readable, got {attempt} failures, the last: {error}; "
            "register it again when it can be read"
        ) from error
