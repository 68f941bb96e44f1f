from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from tasks.report.figures import bars, histogram, strip
from tasks.report.page import Clean, is_page, render
from tasks.report.trigger_images import trigger_pngs, triggers_of
from tasks.report.words import meaning
from tasks.vetting.choose import NONE, candidates
from tasks.vetting.results import RepairFailed, RepairRecord, RepairTriggers, Result
from tests.tasks.vetting.records import repaired
from vetgate.contract import Axis, Evidence, Trigger
from vetgate.formats.plain_text import escaped, steering
from vetgate.verdict.accuracy_loss import AccuracyLoss
from vetgate.verdict.policy import RepairPolicy
from vetgate.verdict.reasons import Code, Reason
from vetgate.verdict.stated import StatedMethod, StatedVerdict

METHOD = {
    "name": "neural_cleanse",
    "statistic": 3.5,
    "alarmed": True,
    "suspects": [2],
    "seconds": 1.5,
    "failure": None,
}


def evidence(classes: int = 4, method: str = "neural_cleanse") -> Evidence:
    random = torch.Generator().manual_seed(0)
    triggers = tuple(
        Trigger(torch.rand(1, 8, 6, generator=random) * (0.1 if k == 2 else 0.9), torch.rand(3, 8, 6), k)
        for k in range(classes)
    )
    norms = torch.tensor([t.norm for t in triggers])
    return Evidence(3.5, -norms.log(), 2.0, triggers, None, {"spread": 0.2}, method, Axis.CLASS, {"steps": 40}, 7)


def result(**changed: Any) -> Result:
    made = {
        "submission": "signs",
        "manifest_sha256": "ab" * 32,
        "verdict": "FAIL",
        "p_value": 0.05,
        "calibrated": True,
        "suspects": [2],
        "methods": [METHOD],
        "repair": None,
        "report": "report.html",
        "attestation": "attestation.json",
        "mlflow_run": None,
        "sandbox_level": 1,
        "seconds": 12.5,
        "reasons": [],
        "reason_records": [],
    }
    return Result.from_json(made | changed)


def repair_record(before: list[Any], after: list[Any], **changed: float) -> RepairRecord:
    made = repaired("neural_cleanse_unlearning")
    return replace(made, changed=changed, triggers=RepairTriggers(tuple(before), tuple(after), ()))


def stated(p_value: float, null: dict[str, Any] | None = None, **calibration: Any) -> StatedVerdict:
    method = StatedMethod("neural_cleanse", 3.5, p_value, True, (2,), None, null)
    return StatedVerdict("FAIL", 0.05, True, (2,), (method,), (), calibration or None, ())


def text(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<(style|title).*?</\1>|<[^>]*>", " ", page, flags=re.S)).split())


def test_the_page_says_what_was_decided_and_from_what() -> None:
    found = evidence()
    null = {"values": [0.5, 0.7, 1.0, 1.3, 0.9], "cutoff": 2.0}
    page = render(
        result(reasons=["label 2 alarmed"]),
        evidence=[{"about": {"code": "cd" * 32}, "vetter": "12" * 32, "evidence": found.to_json()}],
        verdict=stated(0.125, null, id="bank-1", n=19),
        submission={"supplier": "Acme", "classes": ["a", "b", "stop", "d"], "format": "onnx", "input_shape": [3, 8, 6]},
        provenance={"Policy SHA-256": "ef" * 32},
    )
    words = text(page)
    for expected in (
        "FAIL This model carries signs of a backdoor. A hidden trigger makes it answer label 2 (stop).",
        "label 2 alarmed",
        "Do not use this model",
        "about 5 in 100 look at least as suspicious",
        "bank-1",
        "Neural Cleanse",
        "0.125",
        f"code {'cd' * 32}, signed by vetter {'12' * 32}",
        "ab" * 32,
        "ef" * 32,
        "Acme",
        "steps 40",
        "label 2 (stop) · suspected",
        f"{found.triggers[2].norm:.3g} pixels",
    ):
        assert expected in words, expected
    assert "seed" not in words
    assert "this model 3.5; 5 reference values from 0.5 to 1.3, none as high" in page
    for trigger in found.triggers:
        assert re.search(rf"<u>{trigger.target}</u>.*<b>{trigger.norm:.3g}</b>", page)


class Markup(HTMLParser):
    """The tags of a page with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, tuple(name for name, _ in attrs)))


def page_of(given: str) -> str:
    """A page in which every string that a supplier or a method can choose is `given`."""
    found = evidence().to_json() | {"method": given, "params": {given: given}, "details": {given: 1.0}}
    method = METHOD | {"name": given, "failure": given}
    repair = {
        "method": given,
        "artifact": given,
        "submission": given,
        "verdict": given,
        "p_value": None,
        "clean_accuracy": [0.9, 0.8],
        "attack_success": [1.0, 0.0],
        "robust_accuracy": [0.0, 0.9],
    }
    tried = [{"method": given, "standing": "failed", "figures": None, "reason": given, "reason_record": None}]
    given_by = {"submission": given, "verdict": given, "reasons": [given], "mlflow_run": given, "repairs": tried}
    return render(
        result(methods=[method], repair=repair, **given_by),
        evidence=[{"about": {"code": given}, "evidence": found}],
        repair=repair_record(found["triggers"], [], **{given: 1.0}),
        verdict=stated(0.125, id=given, n=19),
        submission=dict.fromkeys(("supplier", "format", "reference_data", "parent"), given)
        | {"classes": [given] * 4, "input_shape": [3, 8, 6]},
        provenance={given: given},
    )


def guard(name: str = "strip", **changed: Any) -> dict[str, Any]:
    cost = {"bare": 0.5, "guarded": 40.5, "slowdown": 81.0}
    made = {"rate": 0.05, "false_rejections": 0.031, "detection": 0.953, "alone": cost, "batch": cost}
    return {"name": name, "chosen": True, "reason": None, **made, **changed}


def test_guards_are_shown_with_what_they_reject_and_cost_and_why_one_is_not_chosen() -> None:
    slow = guard("another", chosen=False, reason="takes <b>900 times", rate=None, false_rejections=None, alone=None)
    guards = {"package": "cd" * 32, "action": "log-only", "rate": 0.05, "false_rejections": 0.031, "seconds": 1.5}
    page = render(result(guards=guards | {"guards": [guard(), slow]}), evidence=[])
    text = " ".join(re.sub(r"<[^>]+>", " ", page.partition("Run-time guards")[2]).split())
    assert "served: STRIP; 3.1 % of clean test images are rejected, 5 % are allowed. What becomes" in text
    assert "alarms: log-only." in text
    assert "STRIP chosen 5.0 % 3.1 % 95.3 % 0.5 → 40.5 81 times 0.5 → 40.5 81 times" in text
    assert "Another not chosen takes &lt;b&gt;900 times – – 95.3 % – 0.5 → 40.5 81 times" in text
    assert "Run-time guards" not in render(result(), evidence=[])


def test_nothing_given_is_ever_markup() -> None:
    page = page_of("<script>alert(1)</script>\"'><img src=x onerror=alert(1)><!--")
    assert "&lt;script&gt;" in page and "<script" not in page
    assert Markup(page).seen == Markup(page_of("harmless")).seen


@pytest.mark.parametrize("hostile", ["\x1b]0;x\x07", "a\x00b", "B\u202eTSENOH", "\x9b1m", "a\u2066b"])
def test_no_control_of_a_stranger_is_in_the_page(hostile: str) -> None:
    submission = {"supplier": hostile, "classes": [hostile, "b", "c", "d"]}
    changed = {"submission": hostile, "reasons": [hostile], "suspects": [0]}
    page = render(result(**changed), evidence=[evidence().to_json()], submission=submission)
    assert all(steering(line) is None for line in page.replace("\t", "").split("\n"))
    assert page.count(escaped(hostile)) >= 4


def test_the_page_loads_nothing() -> None:
    clean = Clean(np.random.rand(3, 3, 8, 6).astype(np.float32), np.array([2, 2, 1]))
    page = render(result(), evidence=[evidence().to_json()], clean=clean)
    sources = re.findall(r"(?:src|href|srcset|action|data)\s*=\s*\"([^\"]*)\"", page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in page and "@import" not in page and "http://" not in page and "https://" not in page
    assert "default-src 'none'" in page


def test_triggers_become_pictures_of_themselves() -> None:
    found = evidence()
    image = np.random.RandomState(0).rand(3, 8, 6).astype(np.float32)
    files = trigger_pngs([found.to_json(), found.to_json() | {"method": "abs", "triggers": []}], image)
    assert sorted(files) == sorted(
        f"neural_cleanse/label-{k}-{what}.png" for k in range(4) for what in ("mask", "pattern", "clean", "stamped")
    )
    stamped = found.triggers[1].stamp(torch.from_numpy(image)[None])[0].numpy()
    for name, expected in (("mask", found.triggers[1].mask.numpy()), ("stamped", stamped)):
        seen = np.asarray(Image.open(io.BytesIO(files[f"neural_cleanse/label-1-{name}.png"])))
        seen = seen[..., None] if seen.ndim == 2 else seen
        factor = seen.shape[0] // 8
        assert factor > 10 and seen.shape[:2] == (8 * factor, 6 * factor)
        # whole pixels: every copy of a pixel is the same
        assert np.array_equal(seen, seen[::factor, ::factor].repeat(factor, 0).repeat(factor, 1))
        assert np.abs(seen[::factor, ::factor] - expected.transpose(1, 2, 0) * 255).max() <= 0.51
    assert [p.norm for p in triggers_of(found.to_json())] == pytest.approx([t.norm for t in found.triggers])


def test_two_triggers_of_one_label_keep_two_names() -> None:
    found = evidence(1)
    twice = Evidence(1.0, torch.zeros(1), 0.0, found.triggers * 2, method="abs")
    assert {"abs/label-0-mask.png", "abs/label-0-2-mask.png"} < set(trigger_pngs([twice.to_json()]))


def test_an_image_of_another_class_is_shown(tmp_path: Path) -> None:
    x = np.random.rand(100, 1, 4, 4).astype(np.float32)
    save_file({"x": x, "y": np.arange(100) // 2}, tmp_path / "test.safetensors")
    clean = Clean.first_of(tmp_path / "test.safetensors", 10)
    assert len(clean.x) == len(clean.y) == 10
    shown = clean.other_than(0)
    assert shown is not None and np.array_equal(shown, x[2])
    assert Clean(x[:2], np.array([3, 3])).other_than(3) is None


def test_a_repair_is_shown_before_and_after() -> None:
    triggers = evidence().to_json()["triggers"]
    repair = {
        "method": "neural_cleanse_unlearning",
        "artifact": "repaired/model.onnx",
        "submission": "cd" * 32,
        "verdict": "PASS",
        "p_value": 0.6,
        "clean_accuracy": [0.979, 0.972],
        "attack_success": [0.998, 0.012],
        "robust_accuracy": [0.0, 0.965],
    }
    page = render(result(repair=repair), evidence=[], repair=repair_record(triggers[2:3], triggers[:1], steps=200))
    words = text(page)
    for expected in (
        "97.9 % 97.2 %",
        "99.8 % 1.2 %",
        "Robust accuracy, under the worst of them 0.0 % 96.5 %",
        "FAIL PASS",
        "Triggers before",
        "Triggers tried after",
        "cd" * 32,
    ):
        assert expected in words, expected
    assert page.count("<figure") == 2
    assert "whatever became of the copy" in words


POLICY = RepairPolicy(methods=(), max_accuracy_loss=0.02, max_attack_success=0.05)


def shown_with(*tried: Any, chosen: RepairRecord | None = None, copies: Any = NONE, **changed: Any) -> str:
    blobs = [one.to_json() for one in candidates(tried, chosen, POLICY, copies)]
    return text(render(result(repairs=blobs, **changed), evidence=[], submission={"classes": ["a", "b", "c", "stop"]}))


def test_every_candidate_is_shown_beside_the_submitted_model() -> None:
    good, costly = repaired("unlearn"), repaired("tune", loss=AccuracyLoss(0.05, 0.01, 400), success=0.4)
    skipped = Reason(Code.REPAIR_SKIPPED, "prune", figures={"lacks": "neurons"})
    words = shown_with(costly, RepairFailed("crash", "out of memory"), skipped, good, chosen=good)
    for expected in (
        "measured on the 400 images for choosing",
        "Submitted model 98.0 % – 100.0 % – 0.0 % 4 –",
        "Tune not good enough repair tune was not good enough: clean accuracy 0.980 to 0.970, a loss of 0.050 of",
        "97.0 % 5.0 % ± 1.6 % 1.0 % 40.0 % 91.0 % 11 2.5",
        "Crash failed repair crash failed: out of memory – – – – – – –",
        "Prune skipped repair prune was skipped, with nothing to go by",
        "Unlearn chosen 97.0 % 1.0 % ± 0.8 % 1.0 % 2.0 % 91.0 % 11 2.5",
        "Triggers of this size lead 0.0 % of images to other labels by nature",
    ):
        assert expected in words, (expected, words)


def test_the_verdict_on_each_copy_stands_beside_its_repair() -> None:
    first, second = repaired("unlearn"), repaired("tune")
    copies = {
        "unlearn": SimpleNamespace(manifest_sha256="ab" * 32, verdict="INCONCLUSIVE"),
        "tune": SimpleNamespace(manifest_sha256="cd" * 32, verdict="PASS"),
    }
    words = shown_with(first, second, chosen=second, copies=copies)
    for expected in (
        "Unlearn good enough, its copy did not pass Vetting of its copy abababababab: INCONCLUSIVE",
        "Tune chosen Vetting of its copy cdcdcdcdcdcd: PASS",
    ):
        assert expected in words, (expected, words)


def test_without_a_trigger_no_success_is_shown_and_nothing_is_called_removed() -> None:
    blind = repaired(triggers=False)
    repair = {
        "method": "unlearn",
        "artifact": "repaired/model.onnx",
        "submission": "cd" * 32,
        "verdict": "PASS",
        "p_value": 0.6,
        "clean_accuracy": [0.979, 0.972],
        "attack_success": [None, None],
        "robust_accuracy": [None, None],
    }
    words = shown_with(blind, chosen=blind, verdict="PASS", suspects=[], repair=repair)
    for expected in (
        "There was no trigger to measure, so that the figures say what a repair costs and nothing of what it removes.",
        "Submitted model 98.0 % – no trigger to measure",
        "Attack success of the reversed triggers no trigger to measure",
        "Robust accuracy, under the worst of them no trigger to measure",
        "nothing shows what it removed",
        "It is promoted by: vetgate promote signs --hardened --submission abababababab",
    ):
        assert expected in words, (expected, words)
    assert "by nature" not in words and "reversed anew on the repaired model" not in words
    page = render(result(repair=repair), evidence=[], repair=blind)
    assert "Triggers before" not in page and "Triggers tried after" not in page


def test_repairs_of_which_none_ran_are_listed_and_without_any_there_is_no_table() -> None:
    skipped = Reason(Code.REPAIR_SKIPPED, "prune", figures={"lacks": "neurons"})
    words = shown_with(skipped)
    assert "Repairs tried Each on a copy, in the order of the policy." in words and "Submitted model" not in words
    assert "Repairs tried" not in shown_with()


@pytest.mark.parametrize(
    "damage",
    [
        {"scores": {"dtype": "object", "shape": [1], "base64": "AAAA"}},
        {"scores": {"dtype": "float32", "shape": [3], "base64": "AAAA"}},
        {"scores": None},
        {"triggers": [{"mask": 1, "pattern": 2, "target": 3}]},
        {"triggers": [{}]},
        {"triggers": [evidence().to_json()["triggers"][0] | {"target": None}]},
    ],
)
def test_evidence_that_cannot_be_shown_is_said_to_be_so(damage: dict[str, Any]) -> None:
    page = render(result(), evidence=[evidence().to_json() | damage])
    assert "evidence that cannot be shown" in page and "FAIL" in page


def test_an_inconclusive_vetting_says_what_could_not_run() -> None:
    method = {
        "name": "abs",
        "statistic": None,
        "alarmed": False,
        "suspects": [],
        "seconds": None,
        "failure": "timed out",
    }
    page = render(
        result(verdict="INCONCLUSIVE", p_value=None, calibrated=False, suspects=[], methods=[method]), evidence=[]
    )
    assert "timed out" in text(page) and "could not run" in text(page)
    assert "What was not seen is never taken for clean" in text(page)
    nothing = result(verdict="INCONCLUSIVE", p_value=None, suspects=[], methods=[])
    assert "No method ran." in text(render(nothing, evidence=[]))


def test_a_pass_is_not_called_proof() -> None:
    words = text(render(result(verdict="PASS", suspects=[]), evidence=[]))
    assert "A pass is evidence, not proof" in words and "Do not use" not in words


def test_a_strip_places_the_model_among_its_references() -> None:
    drawn = strip(5.0, {"values": [1.0, 3.0, 2.0], "cutoff": 4.0})
    assert drawn is not None and drawn.alarm is not None and drawn.band is not None
    assert drawn.ticks == tuple(sorted(drawn.ticks)) and drawn.ticks[-1] < drawn.alarm < drawn.position
    assert drawn.ticks[0] <= drawn.band[0] < drawn.band[1] <= drawn.ticks[-1]
    assert (drawn.low, drawn.high) == (1.0, 5.0)
    by_quantile = strip(0.0, {"quantiles": {"0.05": 1.0, "0.95": 2.0}})
    assert by_quantile is not None and by_quantile.position < by_quantile.ticks[0]
    same = strip(1.0, {"values": [1.0]})
    assert same is not None and same.position == same.ticks[0] and "1 of them as high" in same.words
    assert strip(None, {"values": [1.0]}) is None and strip(1.0, None) is None and strip(1.0, {"values": []}) is None
    assert strip(1.0, {"values": [float("nan"), None]}) is None


def test_bars_and_histograms_are_in_proportion() -> None:
    assert [(b.label, b.length, b.suspect) for b in bars({1: 4.0, 0: 2.0, 2: -1.0}, [1])] == [
        (0, 0.5, False),
        (1, 1.0, True),
        (2, 0.0, False),
    ]
    drawn = histogram([0.0] * 9 + [1.0], 0.5, bins=2)
    assert drawn is not None
    assert drawn.bars == ((0.0, 60.0), (150.0, 20.0)) and drawn.cutoff == 150.0
    assert histogram([], None) is None and histogram([2.0], None) is not None


def test_scores_of_training_rows_are_a_histogram() -> None:
    scores = torch.cat([torch.rand(500), torch.rand(9) + 5])
    found = Evidence(2.0, scores, 5.0, method="spectral_signatures", axis=Axis.TRAIN)
    method = METHOD | {"name": "spectral_signatures"}
    page = render(result(methods=[method]), evidence=[found.to_json()])
    assert "9 of the rows lie at or above the cutoff" in text(page) and 'class="hist"' in page


@pytest.mark.parametrize(
    ("calibrated", "about", "words"),
    [
        (True, {"id": "c1", "references": 27, "data": ["digits"]}, "extrapolated"),
        (False, {"id": "c1", "references": 27, "data": ["digits"]}, "on other data (digits)"),
        (False, {"id": "c1", "references": 27, "data": ["digits", "own"], "own_data": True}, "on digits, own, too few"),
        (False, None, "a simulation"),
    ],
)
def test_how_sure_the_p_value_is_is_said(calibrated: bool, about: dict[str, Any] | None, words: str) -> None:
    said = " ".join(meaning(result(p_value=0.001, calibrated=calibrated), about))
    assert words in said
    assert ("extrapolated" in said) == calibrated
    assert "extrapolated" not in " ".join(meaning(result(p_value=0.3), {"id": "c1", "references": 27}))


def test_a_method_that_was_not_counted_is_shown_as_that_and_takes_from_what_a_pass_says() -> None:
    method = METHOD | {"name": "output_share", "alarmed": False, "suspects": [], "counted": False}
    note = Reason(Code.OTHER_ARCHITECTURES, "output_share")
    passed = result(verdict="PASS", suspects=[], methods=[METHOD, method], reason_records=[note.to_json()])
    said = "Not counted, since no clean reference model is like this one: Output share. Fewer backdoors are found"
    page = text(render(passed, evidence=[]))
    assert said in page and page.count("not counted") == 1
    assert said not in text(render(replace(passed, reason_records=()), evidence=[]))


def test_a_page_of_ours_is_known_whatever_stands_in_it() -> None:
    hostile = '<script>x</script><meta http-equiv="refresh"><a href="x">\u202e'
    page = render(
        result(reasons=[hostile], submission=hostile),
        evidence=[{"evidence": evidence().to_json()}],
        submission={
            "supplier": hostile,
            "classes": [hostile, "b", "c", "d"],
            "format": "onnx",
            "input_shape": [3, 8, 6],
        },
    )
    assert is_page(page.encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda page: "<h1>PASS</h1>",
        lambda page: "",
        lambda page: page.replace("default-src 'none'", "default-src *"),
        lambda page: "\ufeff" + page,
        lambda page: "<script>x</script>" + page,
        lambda page: page.replace("</body>", "<script>x</script></body>"),
        lambda page: page.replace("</title>", '</title><META\nhttp-equiv="refresh" content="0;url=https://x.example">'),
        lambda page: page.replace("</title>", "</title><base href='https://x.example'>"),
        lambda page: page.replace("</body>", '<a href="https://x.example">more</a></body>'),
        lambda page: page.replace("</body>", '<form action="https://x.example"></form></body>'),
    ],
)
def test_a_page_that_loads_runs_or_leads_elsewhere_is_none_of_ours(change: Callable[[str], str]) -> None:
    page = render(result(), evidence=[])
    assert is_page(page.encode())
    changed = change(page)
    assert changed != page and not is_page(changed.encode())
