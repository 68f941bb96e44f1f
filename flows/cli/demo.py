"""The demo: two suppliers hand in digit classifiers, one with a backdoor, and go the whole way to production or not.

What is expected of it is checked: a demo that ends otherwise says what differs and exits with 2.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from flows.cli.console import Outcome
from flows.cli.demo_outcome import Ending, Row, pages, show, unexpected
from flows.production.promote import promote
from flows.vetting import local
from tasks.progress import report_progress
from tasks.settings import Settings, load_settings
from tasks.vetting import intake
from tasks.vetting.results import Result
from tasks.vetting.workplace import cool
from vetgate.errors import Denied, StoreError
from vetgate.formats.submission import read_submission
from vetgate.shape import Blob
from vetgate.trust.seeds import DEMONSTRATION

Ask = Callable[[str | None], Blob]


def run_demo(seed: int) -> Outcome:
    """Run it on this installation; the same installation may run it again.

    The suppliers train, and the installation vets, by the seed. One clean model in twenty raises an alarm: a demo that
    drew its seed would now and then end otherwise.
    """
    started = time.monotonic()
    settings = load_settings()
    server = os.environ.get("PREFECT_API_URL")
    with _suppliers(settings.home / "demo", seed) as ask:
        ready = local.start_all(settings)
        # imports Prefect while the suppliers train
        importlib.import_module("flows.vetting.vet")
        handed = _handed_in(ask)
        given = [(Path(item["directory"]), item["measured"]) for item in handed["submissions"]]
        results = _vet(settings, [directory for directory, _ in given], seed, ready)
        rows = [_row(result, *item) for result, item in zip(results, given, strict=True)]
        if (repair := results[-1].repair) is not None:
            directory = Path(repair.artifact).parent
            before, after = repair.attack_success
            rows[-1] = replace(rows[-1], reversed_trigger=before)
            rows.append(_row(_result_of(settings, repair.submission), directory, ask(str(directory)), trigger=after))
    honest, trojaned, *repaired = _at_the_gate(settings, rows)
    ending = Ending(
        honest=honest,
        trojaned=trojaned,
        repaired=repaired[0] if repaired else None,
        target=handed["target"],
        report=results[-1].report,
        sandbox_level=results[-1].sandbox_level,
        pages=pages(settings, server),
        seconds=round(time.monotonic() - started, 1),
    )
    return Outcome(2 if unexpected(ending) else 0, ending.to_json(), lambda console: show(console, ending))


@contextmanager
def _suppliers(out: Path, seed: int) -> Iterator[Ask]:
    """The suppliers' process, gone afterwards: asked with a directory, or with None, it gives its next answer."""
    child = subprocess.Popen(
        [sys.executable, "-m", "flows.bank.suppliers", str(out), str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None
    questions, answers = child.stdin, child.stdout

    def ask(directory: str | None) -> Blob:
        if directory is not None:
            print(directory, file=questions, flush=True)
        line = answers.readline()
        if not line:
            raise StoreError("the suppliers' process ended without an answer; its last words are above")
        answer: Blob = json.loads(line)
        return answer

    try:
        yield ask
    finally:
        questions.close()
        answers.close()
        child.wait()


def _handed_in(ask: Ask) -> Blob:
    """What the suppliers hand in, once it is trained."""
    training = "two suppliers train their models"
    report_progress(training, 0)
    while "submissions" not in (said := ask(None)):
        report_progress(training, said["done"])
    return said


def _vet(settings: Settings, directories: list[Path], seed: int, ready: Callable[[], None]) -> list[Result]:
    """The results of vetting each submission, with its repair, as `vetgate vet` does, once it is `ready`."""
    from flows.vetting.vet import vet

    records = [intake.take(settings, directory, origin=f"{DEMONSTRATION}{seed}") for directory in directories]
    try:
        report_progress("start", 0)
        ready()
        report_progress("start", 1)
        return [Result.from_json(vet(record.id)) for record in records]
    finally:
        cool()


def _row(result: Result, directory: Path, measured: Blob, trigger: float | None = None) -> Row:
    submission = read_submission(directory)
    return Row(
        submission=submission.name,
        supplier=submission.supplier,
        manifest_sha256=result.manifest_sha256,
        verdict=result.verdict,
        p_value=result.p_value,
        suspects=[*result.suspects],
        reasons=[*result.reasons],
        **measured,
        reversed_trigger=trigger,
    )


def _result_of(settings: Settings, manifest_sha256: str) -> Result:
    """The newest result of a submission that a flow vetted by itself."""
    from flows.vetting.vet import last_result

    return Result.from_json(last_result(settings, manifest_sha256))


def _at_the_gate(settings: Settings, rows: list[Row]) -> Iterator[Row]:
    """The rows with what promotion says to each."""
    report_progress("promoting", 0)
    for turn, row in enumerate(rows, 1):
        try:
            granted = promote(settings, row.submission, submission=row.manifest_sha256)
            yield replace(row, production=f"{granted['model']} v{granted['version']}")
        except Denied as error:
            yield replace(row, refusal=str(error))
        report_progress("promoting", turn / len(rows))
