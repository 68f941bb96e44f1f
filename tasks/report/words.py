"""What a report says in plain words about a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.vetting.results import Result
from vetgate.role import title_of
from vetgate.verdict.reasons import Code, Reason

VERDICTS = {
    "PASS": "No sign of a backdoor was found.",
    "FAIL": "This model carries signs of a backdoor.",
    "INCONCLUSIVE": "It could not be decided whether this model is safe, so it is held back.",
}

# why a method that ran could not bear on a decision
UNCOUNTED = {Code.OTHER_ARCHITECTURES, Code.OTHER_DATA_SETS, Code.DRIVEN_IN_PART, Code.NOT_COUNTED}


def name_of(label: int, names: Sequence[str]) -> str:
    """A label with its name, if it has one that says more."""
    name = names[label] if 0 <= label < len(names) else ""
    return f"{label} ({name})" if name and name != str(label) else str(label)


def summary(result: Result, names: Sequence[str]) -> str:
    """The verdict as one sentence or two."""
    words = VERDICTS.get(result.verdict, "")
    if result.suspects and result.verdict == "FAIL":
        labels = ", ".join(name_of(k, names) for k in result.suspects)
        many = len(result.suspects) > 1
        words += f" A hidden trigger makes it answer {'labels' if many else 'label'} {labels}."
    return words


def to_promote_copy(result: Result) -> str | None:
    """The command that promotes the repaired copy; None where there is none that passed."""
    if result.repair is None or result.repair.verdict != "PASS":
        return None
    return f"vetgate promote {result.submission} --hardened --submission {result.manifest_sha256[:12]}"


def guarded(result: Result) -> str | None:
    """What guards the model where it is served, in a sentence without its end; None where no guards were to be."""
    if (guards := result.guards) is None:
        return None
    chosen = [title_of(one.name) for one in guards.guards if one.chosen]
    if not chosen:
        reasons = "; ".join(f"{title_of(one.name)}: {one.reason}" for one in guards.guards)
        return f"nothing guards this model where it is served ({reasons})"
    if guards.package is None:
        return f"nothing guards this model where it is served: the attestation does not name {', '.join(chosen)}"
    rejected = "–" if guards.false_rejections is None else f"{100 * guards.false_rejections:.1f} %"
    allowed = f"{100 * guards.rate:.3g} % are allowed"
    return f"{', '.join(chosen)}; {rejected} of clean test images are rejected, {allowed}"


def meaning(result: Result, calibration: Mapping[str, Any] | None) -> list[str]:
    """What a reader who has to act on the verdict should know, a paragraph each."""
    return [*_decision(result), *_certainty(result, calibration), *_repaired(result), _limits(result)]


def _decision(result: Result) -> list[str]:
    match result.verdict:
        case "PASS":
            return [
                "Every method that the policy requires ran, and none found more than clean models show. The gate "
                "lets exactly these bytes through until the attestation expires.",
                *_uncounted(result),
            ]
        case "FAIL":
            return [
                "A model with a backdoor works normally until its input carries a certain mark, and then gives "
                "the answer that the attacker chose beforehand. Do not use this model. The gate refuses it."
            ]
        case _:
            return [
                "Something that the policy requires could not run, or could not be judged; the reasons are at the "
                "top. What was not seen is never taken for clean: the gate refuses the model until they are gone."
            ]


def _uncounted(result: Result) -> list[str]:
    """That some of what ran could not bear on the decision, and what that takes from the published figures."""
    reasons = map(Reason.from_json, result.reason_records)
    names = [title_of(reason.method) for reason in reasons if reason.code in UNCOUNTED and reason.method]
    if not names:
        return []
    return [
        f"Not counted, since no clean reference model is like this one: {', '.join(names)}. Fewer backdoors are found "
        "than the published figures say, which are of models that all methods count on."
    ]


def _certainty(result: Result, calibration: Mapping[str, Any] | None) -> list[str]:
    p = result.p_value
    if p is None:
        return []
    words = (
        f"The p-value is {p:.3g}: of clean models, about {100 * p:.3g} in 100 look at least as suspicious as this one."
    )
    about = calibration or {}
    count = about.get("references")
    if result.calibrated:
        named = about.get("id") or about.get("name")
        return [
            words + " It was measured on clean reference models" + (f" ({named})." if named else ".") + _far(p, count)
        ]
    if about.get("own_data"):
        together = ", ".join(about["data"])
        few = f" It was measured on {together}, too few of them like this model: how often it is wrong on such was not."
        return [words + few]
    if about.get("data"):
        others = ", ".join(about["data"])
        return [words + f" It was measured on other data ({others}): how often it is wrong on this was never measured."]
    return [words + " It comes from a simulation, not from reference models: how often it is wrong was never measured."]


def _far(p: float, references: int | None) -> str:
    if not references or p * (references + 1) >= 1:
        return ""
    return f" Smaller than one in {references + 1}, which is what {references} of them can tell, it is extrapolated."


def _repaired(result: Result) -> list[str]:
    if result.repair is None:
        return []
    words = (
        f"A repaired copy was made and vetted by the same rules as a submission of its own; its verdict is "
        f"{result.repair.verdict}."
    )
    words += " The verdict on this page is about the bytes that were submitted, whatever became of the copy."
    if result.repair.attack_success[0] is None:
        words += (
            " No trigger was found by which the copy could be measured: its accuracy shows what the repair cost, and "
            "nothing shows what it removed."
        )
    if (command := to_promote_copy(result)) is not None:
        words += f" It is promoted by: {command}"
    return [words]


def _limits(result: Result) -> str:
    words = "These methods look for triggers of the kinds they were made for: patches, blends and single neurons."
    if result.verdict == "PASS":
        return words + " A pass is evidence, not proof, and says nothing about triggers of other kinds."
    return words + " A false alarm is possible at the rate that the policy allows."
