"""A detector whose inversions are computed by many workers: ask what is missing, have it computed, ask again.

Nothing but JSON travels: digests, plain values and where the blocks stand. Each worker has its own sandbox, and what a
sandbox answers is handed on unread, to be read in a sandbox again.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tasks.sandbox.answers import MORE_TIME
from tasks.sandbox.host import Crashed, TimedOut
from tasks.settings import Settings, load_settings
from tasks.vetting.dask.workplaces import case_from_json, case_to_json, place_for
from tasks.vetting.inspect import Case, asked_of, recorded
from vetgate.digest import code_digest
from vetgate.errors import StoreError
from vetgate.shape import Blob

BLOCK = re.compile(r"\d{1,6}\.[01]\.\d{1,6}")


class Pending(Protocol):
    """What `submit` gives at once for an answer that comes later."""

    def result(self) -> str:
        """The answer; raises what the work raised."""

    def cancel(self) -> Any:
        """The caller no longer waits for the answer."""


Submit = Callable[[Callable[[str], str], str], Pending]


def detect_spread(
    settings: Settings, case: Case, sizes: dict[str, int], method: str, params: Blob, submit: Submit
) -> Blob:
    """The fields of what one detector found, as `run_detector` gives them, its blocks computed by `submit`.

    `submit(work, job)` has work(job) done by a worker. The case's own paths are not used.
    """
    job = {
        "case": case_to_json(case),
        "sizes": sizes,
        "method": method,
        "params": params,
        "code": code_digest("detect", method),
    }

    def run() -> Blob:
        return _Asking(case, job, submit, lambda part: json.loads(_compute(settings, part))).run()

    return recorded(settings, case, method, params, run)


def compute(job: str) -> str:
    """Do one part of a vetting on this worker, with the settings of its environment; JSON in, JSON out."""
    return _compute(load_settings(), json.loads(job))


def _compute(settings: Settings, job: Blob) -> str:
    if code_digest("detect", job["method"]) != job["code"]:
        raise StoreError(f"expected the same code of {job['method']} on every worker, got other; install one version")
    with place_for(settings, case_from_json(settings, job["case"]), job["sizes"]) as place:
        payload, limits = asked_of(settings, place.case, job["method"], job["params"])
        sandbox, started = place.workplace.sandbox, time.monotonic()
        answer = sandbox.call("detect", payload | {"replay": job["replay"]}, limits=limits)
        spent = {"seconds": time.monotonic() - started, "cpu_seconds": sandbox.cpu_seconds}
        return json.dumps(answer | spent | {"sandbox_level": sandbox.level})


@dataclass(eq=False)
class _Asking:
    """One run of a detector, as far as it is known."""

    case: Case
    job: Blob
    submit: Submit
    ask: Callable[[Blob], Blob]
    done: list[Blob] = field(default_factory=list)
    blocks: dict[str, Blob] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    levels: set[int] = field(default_factory=set)

    def run(self) -> Blob:
        """The evidence, the seconds of all parts, and the lowest sandbox level of any."""
        while True:
            answer = self._received(self.ask(self.job | {"replay": {"done": self.done, "blocks": self.blocks}}))
            if "evidence" in answer:
                return {"evidence": answer["evidence"], "seconds": self.seconds, "sandbox_level": min(self.levels)}
            needs = self._needed(answer)
            if fresh := answer.get("done"):
                self.done += fresh
                self.blocks = {}
            self.blocks |= self._computed(needs)

    def _needed(self, answer: Blob) -> Mapping[str, Blob | None]:
        needs: Mapping[str, Blob | None] = answer.get("needs") or {}
        most = self.case.n_classes
        # what is known already would be asked for again and again
        if not 0 < len(needs) <= most or any(not BLOCK.fullmatch(name) or name in self.blocks for name in needs):
            raise Crashed(
                f"expected the names of 1 to {most} new blocks from detect, got {len(needs)}; refuse the model"
            )
        return needs

    def _computed(self, needs: Mapping[str, Blob | None]) -> dict[str, Blob]:
        pending = {
            name: self.submit(
                compute, json.dumps(self.job | {"replay": {"done": self.done, "only": name, "start": start}})
            )
            for name, start in needs.items()
        }
        try:
            answers = {name: self._received(json.loads(part.result())) for name, part in pending.items()}
        except BaseException:
            for part in pending.values():
                part.cancel()
            raise
        if any("block" not in answer for answer in answers.values()):
            raise Crashed("expected a block from detect, got none; refuse the model")
        return {name: answer["block"] for name, answer in answers.items()}

    def _received(self, answer: Blob) -> Blob:
        self.seconds += answer["seconds"]
        self.levels.add(answer["sandbox_level"])
        # the processor time of all workers together, so that a busy cluster fails nothing
        self.cpu_seconds += answer["cpu_seconds"]
        if self.cpu_seconds > self.case.limits.cpu_seconds:
            most = self.case.limits.cpu_seconds
            raise TimedOut(f"expected an answer in {most} s of processor time of all workers; {MORE_TIME}")
        return answer
