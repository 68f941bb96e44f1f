"""Give up: a submission whose vetting died again and again ends INCONCLUSIVE, signed like any other verdict."""

from __future__ import annotations

import time

from flows.gate.client import decision
from flows.gate.question import Question
from flows.vetting.result import publish, result_of
from flows.vetting.seen import Seen
from tasks import events
from tasks.settings import Settings
from tasks.store.lease import leased
from tasks.store.open import open_store
from tasks.vetting import intake
from tasks.vetting.inspect import Data
from vetgate.shape import Blob
from vetgate.verdict.policy import load_policy
from vetgate.verdict.reasons import Code, Reason
from vetgate.verdict.wording import render


def give_up(settings: Settings, manifest_sha256: str) -> Blob:
    """The result of a submission that could not be vetted in as many attempts as the policy allows."""
    policy = load_policy(settings.policy)
    record = intake.read_record(open_store(settings), manifest_sha256)
    reason = Reason(Code.GIVEN_UP, figures={"attempts": policy.max_attempts})
    # nothing was opened, so nothing was opened outside a sandbox
    level = max(policy.sandbox_level.values(), default=1)
    with leased(settings, record.id):
        question = Question(
            manifest=record.id,
            evidence={},
            failures=dict.fromkeys(policy.required, render(reason)),
            failure_codes=dict.fromkeys(policy.required, reason.code.value),
            reference_data=None,
            sandbox_level=level,
        )
        answer = decision(settings, question)
        result = result_of(settings, record, answer, Seen(refusal=reason), None, level, time.monotonic())
        published = publish(settings, record, Data(), answer, result, None)
    events.verdict_issued(record.id, published["verdict"], once=published["mlflow_run"], automatic=False)
    return published
