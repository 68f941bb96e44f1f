"""Examine one submission: what happens in which order, from the quarantined bytes to evidence that a gate can judge."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace

from prefect import flow

from flows.gate.question import Question, examination
from flows.params import Params, load_params, needs
from flows.vetting.guard import guard_submission
from flows.vetting.seen import Seen
from tasks.progress import announce
from tasks.sandbox.host import Limits, SandboxError
from tasks.settings import Settings, load_settings
from tasks.store.open import open_store
from tasks.vetting import intake, steps
from tasks.vetting.estimate import spoken
from tasks.vetting.inspect import Case, Data, Found, begun, processor_seconds, was_looked_at
from tasks.vetting.intake import Record
from tasks.vetting.signed_results import save, vetter_key
from tasks.vetting.workplace import Workplace, open_workplace, pass_on
from vetgate.errors import NotUnderstood
from vetgate.formats.readers import formats
from vetgate.shape import Blob
from vetgate.trust.statements import EXAMINATION
from vetgate.verdict.first_look import FirstLook, objection
from vetgate.verdict.policy import Policy, load_policy
from vetgate.verdict.reasons import Code, Figure, Reason, of_error
from vetgate.verdict.wording import render

# detectors that take fewer seconds together run one after another: another sandbox takes three to start
WORTH_ANOTHER = 20


@dataclass(frozen=True)
class Vetting:
    """What one vetting goes by; `case` is what its methods run on, `run` names an independent repetition."""

    settings: Settings
    record: Record
    policy: Policy
    params: Params
    case: Case
    run: str = ""


@contextmanager
def opened(settings: Settings, manifest_sha256: str, run: str = "") -> Iterator[tuple[Vetting, Workplace]]:
    """A submission on its workplace, nothing of it read yet."""
    policy, params = load_policy(settings.policy), load_params(settings.params)
    record = intake.read_record(open_store(settings), manifest_sha256)
    # hours of work are for nothing where what they find could not be signed
    vetter_key(settings)
    with open_workplace(settings, record.id) as workplace:
        case = Case(
            manifest=record.id,
            directory=str(workplace.given / "submission"),
            submission=record.submission.model_dump(mode="json"),
            seed=intake.seed_of(settings, record, run),
            limits=Limits(
                cpu_seconds=policy.timeout_seconds, memory_bytes=policy.memory_bytes, threads=settings.threads
            ),
            run=run,
        )
        if not was_looked_at(settings, case):
            # importing torch inside takes as long as what comes before the first call
            workplace.sandbox.start()
        yield Vetting(settings, record, policy, params, case, run), workplace


def inspect_submission(vetting: Vetting, workplace: Workplace) -> tuple[Vetting, Seen]:
    """The case with its data, and what was seen of it; a submission that is not understood is refused, not an error."""
    format, levels = vetting.record.submission.format, vetting.policy.sandbox_level
    if format in formats() and format not in levels:
        # the gate judges the format that vetgate writes, and knows no other
        return vetting, Seen(refusal=Reason(Code.FORMAT_NOT_ACCEPTED, figures={"format": format}))
    least = levels.get(format, 1)
    if workplace.sandbox.level < least:
        figures: dict[str, Figure] = {"format": format, "wanted": least, "given": workplace.sandbox.level}
        return vetting, Seen(refusal=Reason(Code.SANDBOX_TOO_WEAK, figures=figures))
    steps.take_in(vetting.settings, vetting.record, vetting.case)
    pending = steps.reference_data.submit(vetting.settings, vetting.record.submission, vetting.params.data)
    try:
        described = steps.inspect_and_load(vetting.settings, vetting.record, vetting.case)
        if (written := described.get("written")) is not None:
            pass_on(vetting.settings, vetting.record.id)
            return vetting, Seen(refusal=Reason(Code.NOT_CANONICAL, figures={"written": written}), written=written)
        data: Data = Data(**pending.result())
        vetting = replace(vetting, case=replace(vetting.case, data=data))
        look = FirstLook.from_json(steps.look_first(vetting.settings, vetting.case)) if data.splits else None
    except (NotUnderstood, SandboxError) as error:
        return vetting, Seen(refusal=of_error(error), refused=isinstance(error, NotUnderstood))
    learned: str | None = described.get("weights_sha256")
    against = None if look is None else objection(look, vetting.case.n_classes, vetting.policy.least_skill)
    if against is not None:
        return vetting, Seen(refusal=against, first_look=look, weights=learned)
    wanted = {
        method: params
        for method, params in vetting.params.detect.items()
        if data.training is not None or "train" not in needs("detect", method)
    }
    seconds = processor_seconds(vetting.case, described)
    at_once = vetting.settings.threads if seconds is not None and seconds > WORTH_ANOTHER else 1
    if seconds is not None and not begun(vetting.settings, vetting.case, wanted):
        to_go = spoken(seconds / at_once)
        announce(f"{len(wanted)} detectors on {described['classes']} labels, about {to_go}")
        if seconds > 2 * vetting.policy.timeout_seconds:
            # the longest takes about half of all
            most = vetting.policy.timeout_seconds
            announce(f"one may take more than {most} s of processor time, the `timeout_seconds` of the policy")
    seen = _seen(vetting, workplace, wanted, at_once)
    seen = replace(seen, first_look=look, weights=learned)
    return vetting, seen if seen.refused else replace(seen, guards=guard_submission(vetting, seen.found))


def _seen(vetting: Vetting, workplace: Workplace, wanted: dict[str, Blob], at_once: int) -> Seen:
    """What each of the methods found, so many at once here, or all at once on Dask if the policy says so."""
    if vetting.policy.spread == "dask":
        from flows.vetting.spread import detect_all

        given, refused = detect_all(vetting.policy, vetting.settings, vetting.case, vetting.params.data, wanted)
        return Seen(tuple(Found(**f) for f in given), of_error(refused) if refused else None, refused is not None)
    found: list[Found] = []
    try:
        for blob in _detected(vetting, workplace, wanted, at_once):
            found.append(Found(**blob))
    except NotUnderstood as error:
        return Seen(tuple(found), of_error(error), refused=True)
    return Seen(tuple(found))


def _detected(vetting: Vetting, workplace: Workplace, wanted: dict[str, Blob], at_once: int) -> Iterator[Blob]:
    """What the methods found, in the order in which they are named; raises what the first of them raised."""

    def detect(method: str) -> Blob:
        return steps.detect(vetting.settings, vetting.case, method, wanted[method])

    if at_once == 1:
        yield from map(detect, wanted)
        return
    with ThreadPoolExecutor(at_once) as pool:
        # those named last take longest and begin first; a thread knows the flow that it works for by its context
        running = {method: pool.submit(copy_context().run, detect, method) for method in reversed(wanted)}
        try:
            for method in wanted:
                yield running[method].result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            # what still runs ends with its sandbox, and is not waited for
            workplace.abandon()
            raise


def request_of(vetting: Vetting, seen: Seen, level: int) -> Question:
    """What the gate is asked to judge: the keys of the evidence, and what failed."""
    policy, submission = vetting.policy, vetting.record.submission
    failures = {item.method: item.failure for item in seen.found if item.failure is not None}
    codes = {item.method: item.failure_code for item in seen.found if item.failure_code is not None}
    if seen.refusal is not None:
        required = policy.required + (policy.required_with_training_data if submission.training_data else ())
        failures = dict.fromkeys(required, render(seen.refusal)) | failures
        codes = dict.fromkeys(required, str(seen.refusal.figures.get("error", seen.refusal.code))) | codes
    return Question(
        manifest=vetting.record.id,
        run=vetting.run,
        evidence={item.method: item.key for item in seen.found if item.key is not None},
        failures=failures,
        failure_codes=codes,
        reference_data=vetting.case.data.source or None,
        sandbox_level=level,
        refused=seen.refused,
        guards=None if seen.guards is None else seen.guards.key,
    )


def examine(settings: Settings, manifest_sha256: str, run: str = "") -> Question:
    """Run every detector on a submission, what is known already from the store, and give what the gate can judge.

    `run` names a repetition with another seed. Needs a Prefect server (`flows.vetting.local.start_all`).
    """

    @flow(name="examine", flow_run_name=f"examine-{manifest_sha256[:12]}-{run or 'first'}", result_serializer="json")
    def examining() -> Blob:
        with opened(settings, manifest_sha256, run) as (vetting, workplace):
            return request_of(*inspect_submission(vetting, workplace), workplace.sandbox.level).to_json()

    return Question.from_json(examining())


@flow(name="examine", flow_run_name="examine-{manifest_sha256}", persist_result=True, result_serializer="json")
def examine_flow(manifest_sha256: str, key: str, run: str = "") -> None:
    """Examine, and sign what the gate is to judge for the caller, who asked for it under this key."""
    settings = load_settings()
    with opened(settings, manifest_sha256, run) as (vetting, workplace):
        request = request_of(*inspect_submission(vetting, workplace), workplace.sandbox.level)
    save(settings, EXAMINATION, examination(vetting.record.id, run, key), request.to_json())
