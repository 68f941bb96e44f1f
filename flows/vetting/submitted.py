"""Take in what was registered in MLflow: the payload of a webhook names it, its bytes are read from MLflow."""

from __future__ import annotations

from functools import partial

from prefect import flow

from flows.vetting.submit import refuse_alike
from tasks import events
from tasks.mlflow import submitted as registered
from tasks.settings import Settings, load_settings
from tasks.store.open import open_store
from tasks.vetting import intake
from vetgate.errors import BadSubmission, NotUnderstood
from vetgate.shape import Blob


@flow(name="take-registered", flow_run_name="take-{model}-{version}", persist_result=True, result_serializer="json")
def take_registered(model: str, version: str) -> Blob:
    """Submit a version of thirdparty.<name>; noted once, so that doing it again changes nothing."""
    return take_version(load_settings(), model, str(version))


def take_version(settings: Settings, model: str, version: str) -> Blob:
    """The note on a version, after submitting it if there was none."""
    store = open_store(settings)
    if registered.is_noted(store, model, version):
        return registered.noted(store, model, version)
    try:
        with intake.workroom(settings) as room:
            given = registered.download(settings, model, version, room / "downloaded")
            name = model.removeprefix(registered.PREFIX)
            record = intake.take(settings, given, name=name, check_name=partial(refuse_alike, settings))
    except (BadSubmission, NotUnderstood) as error:
        registered.note(store, model, version, {"refused": str(error)})
        registered.tag(settings, model, version, {"vet.verdict": "INCONCLUSIVE", "vet.reason": str(error)})
        return {"refused": str(error)}
    what = {"manifest_sha256": record.id}
    registered.note(store, model, version, what)
    registered.tag(settings, model, version, {"vet.manifest_sha256": record.id})
    events.emit(events.SUBMISSION_ACCEPTED, f"submission.{record.id}", what, once="accepted")
    return what
