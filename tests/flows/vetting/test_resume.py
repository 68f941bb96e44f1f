"""A vetting that was killed and is started again redoes nothing that was saved, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

from tasks.report.page import is_page
from tasks.store.open import open_store
from tests.databases import with_databases
from vetgate.formats.manifest import hash_directory

# detectors run at once even where they are quick; nothing that imports Prefect is imported before it is configured
AT_ONCE = """
from flows.vetting import runtime
ready = runtime.ready
def at_once():
    ready()
    import flows.vetting.examine
    flows.vetting.examine.WORTH_ANOTHER = 0
runtime.ready = at_once
"""
FATAL = """
import os, signal
from tasks.store.directory import DirectoryStore
create = DirectoryStore.create
def fatal(self, key, data):
    if key.startswith("evidence/") and "/neural_cleanse/" in key:
        {saving}
        os.kill(os.getpid(), signal.{signal})
    return create(self, key, data)
DirectoryStore.create = fatal
"""


def test_a_killed_vetting_goes_on_where_it_was(alone, honest, quick, tmp_path):
    # one detector after another, whatever a slow machine is told that they will take
    own = {"VETGATE_HOME": with_databases(tmp_path / "home"), "VETGATE_THREADS": "1", **quick}
    store = open_store(str(tmp_path / "home" / "store"))

    unsaved = alone("vet", honest, "--json", prelude=FATAL.format(saving="", signal="SIGKILL"), **own)
    assert unsaved.code == -signal.SIGKILL and saved_evidence(store) == {"abs": 1}
    assert attempts(store) == {"abs": 1, "neural_cleanse": 1}
    assert_nothing_runs_on(tmp_path)

    saved = alone(
        "vet", honest, "--json", prelude=FATAL.format(saving="create(self, key, data)", signal="SIGKILL"), **own
    )
    assert saved.code == -signal.SIGKILL and saved_evidence(store) == {"abs": 1, "neural_cleanse": 1}
    assert not list(store.list("verdicts/"))

    whole = alone("vet", honest, "--json", **own)
    assert whole.code == 3 and all(m["statistic"] is not None for m in whole.blob["methods"])
    assert attempts(store) == {"abs": 1, "neural_cleanse": 2, "guard": 1} and saved_evidence(store) == {
        "abs": 1,
        "neural_cleanse": 1,
    }
    assert len(list(store.list("verdicts/"))) == 1
    assert not [room for room in (tmp_path / "home" / "work").iterdir() if room.is_dir()]
    assert_nothing_runs_on(tmp_path)


def test_an_interrupted_vetting_with_detectors_at_once_says_so_and_leaves_no_process(alone, honest, quick, tmp_path):
    own = {"VETGATE_HOME": with_databases(tmp_path / "home"), **quick}

    # tests that run in the background of a script ignore it, and so does all that they start
    interruptible = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    fatal = interruptible + AT_ONCE + FATAL.format(saving="", signal="SIGINT")
    done = alone("vet", honest, "--json", prelude=fatal, **own)

    assert done.code == 130, f"{done.blob}\n{done.err}"
    assert done.blob["exit_code"] == 130 and "Traceback" not in done.err
    assert_nothing_runs_on(tmp_path)

    whole = alone("vet", honest, "--json", prelude=AT_ONCE, **own)
    assert whole.code == 3 and all(m["statistic"] is not None for m in whole.blob["methods"])
    assert saved_evidence(open_store(str(tmp_path / "home" / "store"))) == {"abs": 1, "neural_cleanse": 1}


# what is vetted third is the copy of the second repair, that of the first having not passed
FATAL_AT_THE_THIRD = """
import os, signal
from tasks.store.directory import DirectoryStore
create, vetted = DirectoryStore.create, set()
def fatal(self, key, data):
    if key.startswith("evidence/"):
        vetted.add(key.split("/")[1])
        if len(vetted) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    return create(self, key, data)
DirectoryStore.create = fatal
"""


def test_copies_are_vetted_one_after_another_and_a_killed_run_does_none_of_it_twice(alone, honest, tmp_path):
    policy, params = tmp_path / "policy.yaml", tmp_path / "params.yaml"
    # nothing passes without references
    policy.write_text(
        "name: blind\nrequired: [abs]\n"
        "repair: {enabled: true, blind: true, methods: [fine_tuning_sam, fine_tuning], max_accuracy_loss: 0.5}\n"
    )
    params.write_text(
        "abs: {steps: 6, candidates: 2, finalists: 1}\nfine_tuning: {steps: 20}\nfine_tuning_sam: {steps: 10}\n"
    )
    own = {"VETGATE_HOME": with_databases(tmp_path / "home"), "VETGATE_POLICY": policy, "VETGATE_PARAMS": params}
    store = open_store(str(tmp_path / "home" / "store"))

    killed = alone("vet", honest, "--json", prelude=FATAL_AT_THE_THIRD, **own)
    assert killed.code == -signal.SIGKILL, killed.err
    whole = alone("vet", honest, "--json", **own)

    assert whole.code == 3, whole.err
    repairs, chosen = whole.blob["repairs"], whole.blob["repair"]
    assert sorted(one["standing"] for one in repairs) == ["chosen", "not-passed"]
    assert [one["verdict"] for one in repairs] == ["INCONCLUSIVE"] * 2
    copies = {one["submission"] for one in repairs}
    assert len(copies) == 2 and chosen["submission"] in copies
    assert hash_directory(Path(chosen["artifact"]).parent).sha256 == chosen["submission"]
    # the one method that was killed, before it could save what it found, was begun twice
    assert attempts(store) == {"fine_tuning_sam": 1, "fine_tuning": 1, "abs": 4, "guard": 3}
    assert saved_evidence(store) == {"abs": 3}
    assert len(list(store.list("verdicts/"))) == 3
    assert_nothing_runs_on(tmp_path)


def attempts(store) -> dict[str, int]:
    """How often each method was begun, from the write-once log."""
    return dict(Counter(key.split("/")[2] for key in store.list("invocations/")))


def saved_evidence(store) -> dict[str, int]:
    """How many pieces of evidence each method has."""
    return dict(Counter(key.split("/")[2] for key in store.list("evidence/")))


def assert_nothing_runs_on(home: Path) -> None:
    """Every process that was started with this home ends by itself soon after its command was killed."""
    until = time.monotonic() + 20
    while (left := running(home)) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left


def running(home: Path) -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                if str(home).encode() in (process / "environ").read_bytes() + (process / "cmdline").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


def test_a_page_that_a_stranger_laid_in_the_place_of_the_report_is_made_anew(alone, honest, quick, tmp_path):
    own = {"VETGATE_HOME": with_databases(tmp_path / "home"), **quick}
    first = alone("vet", honest, "--json", **own)
    (key,) = open_store(str(tmp_path / "home" / "store")).list("reports/")
    (tmp_path / "home" / "store" / key).write_text("<h1>PASS</h1>")

    again = alone("vet", honest, "--json", **own)

    assert again.code == first.code and again.blob["mlflow_run"] == first.blob["mlflow_run"]
    assert is_page(Path(again.blob["report"]).read_bytes())
