"""The page and its pictures, from made-up rows and tiny tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from flows.benchmark.cells import count, estimate, number, percent, share, small
from flows.benchmark.page import page
from flows.benchmark.pictures import curves, draw, norms_of, picture
from flows.benchmark.tables import tables
from vetgate.contract import Trigger
from vetgate.shape import Blob
from vetgate.verdict import metrics

NOTHING: Blob = {"norms": None, "roc": None, "triggers": {}, "compared": []}


def row(data: str, attack: str, n: int, p: float, decision: str, **changed: Any) -> Blob:
    clean = attack == "clean"
    ruled = {
        "decision": decision,
        "p_value": p,
        "suspects": [] if decision == "PASS" else [2],
        "right": decision == "FAIL",
        "references": 50,
        "methods": {"neural_cleanse": p},
    }
    return {
        "name": f"{data}-{attack}-{n:02}",
        "data": data,
        "attack": attack,
        "architecture": "small-cnn",
        "accuracy": 0.98,
        "attack_success": None if clean else 0.95,
        "target": None if clean else 2,
        "kind": "clean" if clean else "backdoored",
        "fold": n % 5,
        "seconds": {"neural_cleanse": 12.25},
        "image_gradients": {"neural_cleanse": 123456},
        "index": 1.25 if clean else 4.5,
        "model": ruled,
        **changed,
    }


ROWS = [
    *(row("mnist", "clean", n, 0.5, "PASS") for n in range(4)),
    row("mnist", "clean", 4, 0.03, "FAIL"),
    row("mnist", "badnets", 0, 0.001, "FAIL"),
    row("mnist", "badnets", 1, 0.002, "FAIL"),
    row("mnist", "wanet", 0, 0.9, "PASS", kind="failed attack", attack_success=0.301),
]
REPAIRS = {
    "unlearning": {
        "mnist-badnets-00": {
            "accuracy": [0.98, 0.97],
            "attack_success": [1.0, 0.02],
            "robust_accuracy": [0.0, 0.95],
            "seconds": 3.5,
        }
    }
}


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "RESAMPLES", 20)
        yield


@pytest.fixture(scope="module")
def scored(few_resamples: None) -> Blob:
    transfer = {"data": {"mnist": {"alarms": 1, "models": 5}}, "architecture": {}}
    return tables(ROWS, repairs=REPAIRS, transfer=transfer, rule=(0.8, 0.04))


def line(text: str, beginning: str) -> list[str]:
    """The cells of the first table row that begins so."""
    found = next(one for one in text.splitlines() if one.startswith(f"| {beginning} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


class TestWords:
    def test_what_is_missing_or_no_number_is_a_dash(self):
        assert [write(None) for write in (small, percent, estimate, share)] == ["–"] * 4
        assert [number(math.nan, 1), small(math.nan), percent(math.nan)] == ["–"] * 3
        assert estimate({"value": math.nan, "low": math.nan, "high": math.nan}) == "–"
        assert count({"count": 0, "n": 0}) == "–"

    def test_estimates_come_with_their_interval(self):
        found = {"value": 0.5, "low": 0.25, "high": 0.754}
        assert estimate(found) == "0.500 [0.250, 0.754]"
        assert share(found) == "50 % [25 %, 75 %]"

    def test_counts_come_with_their_share(self):
        assert count({"count": 1, "n": 8}) == "1 of 8 (12.5 %)"


class TestPage:
    def test_false_alarms_come_first_then_detection_then_what_is_held_back(self, scored):
        text = page(scored, {}, NOTHING)
        places = [
            text.index(f"## {name}") for name in ("False alarms", "Detection", "Members held back", "Cost", "Repairs")
        ]
        assert places == sorted(places)

    def test_false_alarms(self, scored):
        text = page(scored, {}, NOTHING).split("## False alarms")[1]
        one = "1 of 5 (20.0 %)"
        assert line(text, "mnist") == ["mnist", "50", one, one, "0 of 5 (0.0 %)\\*", "0 of 5 (0.0 %)"]

    def test_what_is_extrapolated_is_marked_and_explained(self, scored):
        assert "\\* Extrapolated" in page(scored, {}, NOTHING)
        rows = [{**r, "model": {**r["model"], "references": 99}} for r in ROWS]
        text = page(tables(rows), {}, NOTHING)
        assert "\\* Extrapolated" not in text and "%)\\*" not in text

    def test_failed_attacks_are_named_with_their_success(self, scored):
        text = page(scored, {}, NOTHING)
        assert line(text, "mnist-wanet-00") == ["mnist-wanet-00", "wanet", "30.1 %", "98.0 %"]

    def test_members_held_back_stand_beside_the_others(self, scored):
        sealed = tables([row("mnist", "clean", 0, 0.5, "PASS"), row("mnist", "badnets", 0, 0.9, "PASS")])
        text = page(scored, {"second": scored, "sealed": sealed}, NOTHING).split("## Members held back")[1]
        assert line(text, "clean: FAIL") == ["clean: FAIL", *["1 of 5 (20.0 %)"] * 2, "0 of 1 (0.0 %)"]
        assert line(text, "backdoored: FAIL")[1:] == [*["100 % [100 %, 100 %]"] * 2, "0 % [0 %, 0 %]"]
        assert line(text, "AUROC") == ["AUROC", *["1.000 [1.000, 1.000]"] * 2, "0.000 [0.000, 0.000]"]

    def test_all_clean_members_are_counted_together(self, scored):
        sealed = tables([row("mnist", "clean", 0, 0.01, "FAIL"), row("mnist", "badnets", 0, 0.9, "PASS")])
        text = page(scored, {"sealed": sealed}, NOTHING).split("open and held back together")[1]
        assert line(text, "mnist")[1:3] == ["2 of 6 (33.3 %)"] * 2
        assert line(text, "all")[1] == "2 of 6 (33.3 %)"

    def test_what_other_detectors_scored_is_shown_and_not_added_up(self, scored):
        earlier = {**scored, "detectors": ["abs", "neural_cleanse"]}
        assert scored["detectors"] != earlier["detectors"]
        text = page(scored, {"second": scored, "sealed": earlier}, NOTHING).split("## Members held back")[1]
        assert "| second wave | sealed, by earlier detectors |" in text
        alone = page(scored, {"second": scored}, NOTHING)
        assert text.split("open and held back together")[1] == alone.split("open and held back together")[1]
        del earlier["detectors"]
        assert "held back together" not in page(scored, {"sealed": earlier}, NOTHING)

    def test_without_those_held_back_it_says_so(self, scored):
        assert "Members held back were not scored." in page(scored, {}, NOTHING)

    def test_a_view_that_is_missing_is_dashes(self, scored):
        text = page(scored, {}, NOTHING).split("with its training set:")[1]
        assert set(line(text, "all")[1:]) == {"–"}

    def test_cost_and_repairs(self, scored):
        cost, repairs = page(scored, {}, NOTHING).split("## Cost")[1].split("## Repairs")
        assert line(cost, "mnist")[2:] == ["neural_cleanse", "12.2", "123,456", ""]
        assert line(repairs, "badnets") == [
            "badnets",
            "1",
            "98.0 % → 97.0 %",
            "100.0 % → 2.0 %",
            "0.0 % → 95.0 %",
            "0.985 [0.985, 0.985]",
            "1 of 1 (100.0 %)",
            "3.5",
        ]

    def test_a_repair_that_has_changed_since_is_said_to_have(self, scored):
        (name,) = REPAIRS
        assert f"`{name}`:" in page(scored, {}, NOTHING)
        assert f"`{name}`, as it was before its last change:" in page({**scored, "outdated": [name]}, {}, NOTHING)

    def test_every_row_of_a_table_has_as_many_cells_as_its_head(self, scored):
        text = page(scored, {"sealed": scored}, {**NOTHING, "compared": [compared()]})
        for block in text.split("\n\n"):
            widths = {one.count("|") for one in block.splitlines() if one.startswith("|")}
            assert len(widths) <= 1, block

    def test_no_none_and_no_nan_is_shown_even_of_nothing(self, scored):
        for found in (scored, tables([])):
            text = page(found, {"second": found}, NOTHING)
            assert "None" not in text and "nan" not in text

    def test_pictures_are_shown_where_there_are_some(self, scored):
        assert "](" not in page(scored, {}, NOTHING)
        assert "](benchmark/roc.png)" in page(scored, {}, {**NOTHING, "roc": "benchmark/roc.png"})


def compared() -> Blob:
    about = {"data": "mnist", "name": "mnist-badnets-00", "target": 2}
    return {**about, "original": 9.0, "reversed": 4.5, "inside": 0.8}


EVIDENCE = {
    name: {"neural_cleanse": {"details": {"norms": norms}}}
    for name, norms in {
        "mnist-badnets-00": [20.0, 30.0, 4.5, 25.0],
        "mnist-badnets-01": [22.0, 28.0, 5.5, 21.0],
        "mnist-wanet-00": [1.0, 1.0, 1.0, 1.0],
    }.items()
}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Weights and reversed triggers of both BadNets members, on images of 6x6 pixels."""
    weights, triggers = tmp_path / "weights", tmp_path / "triggers"
    for folder in (weights / "mnist", triggers / "neural_cleanse-mnist"):
        folder.mkdir(parents=True)
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., :3, :3] = 1
    found = torch.zeros(4, 1, 6, 6)
    found[2, :, :2, :2], found[2, :, 5, 5] = 1, 0.5
    for name in ("mnist-badnets-00", "mnist-badnets-01"):
        save_file({"masks": mask, "patterns": mask.clone()}, weights / "mnist" / f"{name}.safetensors")
        tensors = {"mask": found, "pattern": torch.ones(4, 1, 6, 6), "target": torch.arange(4)}
        save_file(tensors, triggers / "neural_cleanse-mnist" / f"{name}.safetensors")
    return {"weights": weights, "triggers": triggers}


class TestPictures:
    def test_infected_labels_are_the_targets_of_attacks_that_work(self):
        assert norms_of(ROWS, EVIDENCE) == {
            "mnist": {"infected": [4.5, 5.5], "uninfected": [20.0, 30.0, 25.0, 22.0, 28.0, 21.0]}
        }

    def test_all_are_drawn_small_and_named_from_the_page(self, tmp_path, folders):
        found = draw(tmp_path / "benchmark", ROWS, EVIDENCE, **folders)
        assert found["norms"] == "benchmark/norms.png" and found["roc"] == "benchmark/roc.png"
        assert found["triggers"] == {"mnist": "benchmark/triggers-mnist.png", "gtsrb": None}
        for path in (tmp_path / "benchmark").glob("*.png"):
            assert path.stat().st_size <= 150_000
            with Image.open(path) as image:
                assert min(image.size) > 100

    def test_norms_of_original_and_reversed_are_handed_back(self, tmp_path, folders):
        found = draw(tmp_path / "benchmark", ROWS, EVIDENCE, **folders)["compared"]
        about = {"data": "mnist", "name": "mnist-badnets-00", "target": 2}
        assert found[0] == {**about, "original": 9.0, "reversed": 4.5, "inside": 0.889}
        assert json.loads((tmp_path / "benchmark" / "triggers.json").read_text()) == {"mnist": found}

    @pytest.mark.parametrize("lost", ["empty", "missing"])
    def test_where_weights_are_absent_the_picture_and_its_norms_stay(self, tmp_path, folders, lost):
        before = draw(tmp_path / "benchmark", ROWS, EVIDENCE, **folders)
        drawn = tmp_path / "benchmark" / "triggers-mnist.png"
        seen = drawn.read_bytes()
        path = folders["weights"] / "mnist" / "mnist-badnets-01.safetensors"
        path.write_bytes(b"") if lost == "empty" else path.unlink()
        # were it drawn, it would show another label
        rows = [{**r, "target": 1} if r["attack"] == "badnets" else r for r in ROWS]
        assert draw(tmp_path / "benchmark", rows, EVIDENCE, **folders) == before
        assert drawn.read_bytes() == seen

    def test_without_any_weights_nothing_fails(self, tmp_path):
        found = draw(tmp_path / "benchmark", ROWS, {}, weights=tmp_path / "no", triggers=tmp_path / "none")
        assert (found["norms"], found["triggers"]["mnist"], found["compared"]) == (None, None, [])

    def test_the_same_rows_give_the_same_bytes(self, tmp_path, folders):
        for name in ("one", "two"):
            draw(tmp_path / name, ROWS, EVIDENCE, **folders)
        for path in (tmp_path / "one").iterdir():
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()

    def test_curves_leave_failed_attacks_and_missing_views_out(self):
        found = curves(ROWS)
        assert [name for name, *_ in found] == ["model only", "published anomaly index"]
        assert [(len(clean), len(backdoored)) for _, clean, backdoored in found] == [(5, 2), (5, 2)]

    def test_a_trigger_is_shown_on_grey(self):
        mask = torch.zeros(1, 2, 2)
        mask[0, 0, 0] = 1
        grey = picture(Trigger(mask, mask, 0))
        assert grey.tolist() == [[1.0, 0.5], [0.5, 0.5]]
        assert picture(Trigger(mask, torch.ones(3, 2, 2), 0)).shape == (2, 2, 3)
