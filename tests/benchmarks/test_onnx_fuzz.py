"""The fuzzer draws every operator that is read, tells outcomes apart, and counts what kills its worker."""

from __future__ import annotations

import os
import random
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from benchmarks import onnx_fuzz
from benchmarks.onnx_fuzz import drawn, examine, fuzz
from benchmarks.onnx_mutations import MUTATIONS
from benchmarks.onnx_seeds import SEEDS, seed_graph
from vetgate.formats.onnx.equal import COUNT
from vetgate.formats.onnx.runtime import Session
from vetgate.formats.onnx.table import OPERATORS

# of shapes and constants only, and what stands for others
FOLDED = {name for name, known in OPERATORS.items() if known.on_constants}
OTHERS = {"Constant", "CastLike", "Tile", "Trilu", "GatherND", "Upsample", "QuantizeLinear", "DequantizeLinear"}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_operator_that_takes_what_the_image_gives_has_a_seed() -> None:
    assert set(SEEDS) | FOLDED | OTHERS == set(OPERATORS)


def test_the_same_number_draws_the_same_file() -> None:
    assert [drawn(3, number) for number in range(20)] == [drawn(3, number) for number in range(20)]
    assert drawn(3, 1) != drawn(4, 1)


@pytest.mark.parametrize("change", MUTATIONS, ids=lambda change: change.__name__)
def test_a_change_leaves_a_graph(change) -> None:
    dice = random.Random(5)
    model = next(model for number in range(20) if (model := seed_graph(dice, number)) is not None)
    change(model, dice)
    assert isinstance(model.SerializeToString(), bytes)


def test_what_is_drawn_and_not_changed_is_mostly_accepted_and_never_differs() -> None:
    dice = random.Random(1)
    models = [model for number in range(60) if (model := seed_graph(dice, number)) is not None]
    found = [examine(model.SerializeToString())[0] for model in models]
    assert found.count("accepted") > len(found) / 2 and "differing" not in found


def test_outcomes_are_counted_and_a_file_that_kills_its_worker_is_one_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def examine_all(out: Connection, seed: int, begin: int, stop: int) -> None:
        for number in range(begin, stop):
            if number == 3:
                os.kill(os.getpid(), signal.SIGSEGV)
            out.send(("differing", "by much") if number == 5 else ("refused", "why"))

    monkeypatch.setattr(onnx_fuzz, "_examine_all", examine_all)
    counts = fuzz(0, 0, 8, keep=tmp_path / "kept")
    assert counts.outcomes == {"refused": 6, "crashing": 1, "differing": 1} and counts.reasons == {"why": 6}
    assert [(each["number"], each["said"]) for each in counts.found] == [(3, "SIGSEGV"), (5, "by much")]
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"crashing-0-3.onnx", "differing-0-5.onnx"}


@pytest.mark.parametrize(("least", "found"), [(1, "unequal"), (COUNT + 1, "differing")])
def test_a_file_that_a_runtime_computes_otherwise_is_found(
    least: int, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(2)
    model = next(m for i in range(40) if (m := seed_graph(dice, i)) and examine(m.SerializeToString())[0] == "accepted")
    run = Session.run

    def other(session: Session, x: torch.Tensor) -> torch.Tensor:
        # what batches of so many images show, and smaller ones do not
        return run(session, x) + (len(x) >= least)

    monkeypatch.setattr(Session, "run", other)
    assert examine(model.SerializeToString())[0] == found
