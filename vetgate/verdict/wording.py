"""The words for reasons: the one place where text is made of codes and figures. Nothing reads it back."""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Any

from vetgate.structure.kind import Kind
from vetgate.verdict.reasons import Code, Reason

WORDS: dict[Code, str] = {
    Code.TRIGGER: "label {label}: a trigger of {norm:.1f} pixels suffices (median label {median:.1f}) and sends "
    "{held_out:share} of unseen images there",
    Code.CONFIRMED: "label {label}: what {method} found leads there on images that it was not made on",
    Code.REPEATED: "label {label}: {method} finds it far above what it is in clean models, and again on other images, "
    "of which {share:share} are sent there, with {classes} labels",
    Code.MISLABELLED: "label {label}: {share:share} of the training images under it show something else, by {method}; "
    "in clean training sets it is far less",
    Code.POISONED_DATA: "{method} finds poisoned rows in the training data",
    Code.STRUCTURAL_BACKDOOR: "{kind:structure}, and when it is driven it alone sends {share:share} of images to "
    "{label:to}: {path}",
    Code.STRUCTURE_NOT_EXPLAINED: "{kind:structure}, which no ordinary network needs; driving it proved nothing (it "
    "alone decided on {share:share} of images): {path}",
    Code.TRIGGER_NOT_CONFIRMED: "label {label} stands out, but what points at it was not confirmed when it was "
    "measured again: on other images, from a second start, or by a second network",
    Code.NO_LABEL_NAMED: "the evidence together is rarer (p = {p_value:.3g}) than {level:g} among clean models, but "
    "names no label",
    Code.DID_NOT_RUN: "{method} is required and did not run",
    Code.FAILED: "{method} is required and failed: {said}",
    Code.ANSWERED_TWICE: "{method} answered {answers} times, expected once",
    Code.NO_WEIGHT: "{method} has no weight in the verdict",
    Code.NOT_FINITE: "{method} gave no finite numbers",
    Code.SCORES_MISFIT: "{method} gave {scores} scores for {classes} classes",
    Code.TRIGGER_MISFIT: "{method} gave a trigger for a class that is not one of {classes}",
    Code.CLASSES_MISFIT: "{method} cannot tell what happens at a rate of {level:g} among {classes} classes",
    Code.NO_CALIBRATION: "there is no calibration for {method}; make one with `vetgate calibrate`, or set "
    "VETGATE_CALIBRATION",
    Code.NO_REFERENCES: "the calibration holds no references for {method}; make them with `vetgate calibrate` and set "
    "VETGATE_CALIBRATION to its file, or run `make bank`",
    Code.OTHER_PARAMETERS: "{method} ran with other parameters than its references; restore params.yaml or recalibrate",
    Code.OTHER_REFERENCES: "{method} has references that are not those the calibration was written with; restore it or "
    "calibrate anew",
    Code.OTHER_CODE: "{method} has changed since its references were made; make them anew with `vetgate calibrate`, or "
    "`make bank`",
    Code.TOO_FEW_REFERENCES: "{references} clean references of {method} are too few for a level of {level:g}; add "
    "more with `vetgate calibrate`, or list more in the bank",
    Code.FEW_CLASSES: "{method} holds a network of {classes} classes against clean networks on the same data alone, "
    "and there are too few for a level of {level:g}; train some with `vetgate calibrate`",
    Code.SURROGATES: "{method} had only images that show nothing: labels {labels} stand out most there, which proves "
    "nothing; name `reference_data` in submission.yaml",
    Code.REQUIRED_NOT_COUNTED: "{method} is required and could not be counted, which this policy leaves open; add "
    "clean models of its kind with `vetgate calibrate --models`",
    Code.SEEDS_DIFFER: "the methods ran with {seeds} different seeds, expected the submission's",
    Code.FORMAT_NOT_ACCEPTED: "the policy names no sandbox level for {format}, so it does not accept it",
    Code.SANDBOX_TOO_WEAK: "the policy demands sandbox level {wanted} for {format}, this host gave {given}",
    Code.NOT_CANONICAL: "these are not bytes that vetgate wrote, and only those are vetted; vetgate wrote {written} in "
    "their place, which `vetgate vet` vets",
    Code.NO_SKILL: "the model is right on {accuracy:share} of {images} trusted images of {classes} classes, which is "
    "near guessing; see whether reference_data, classes and normalization in submission.yaml are the model's",
    Code.READ_WRONGLY: "the model is right on {accuracy:share} of {images} trusted images, and on {under_cause:share} "
    "of those held out with {cause}; say so in submission.yaml, or hand in a model that does this itself",
    Code.OTHER_DATA: "the calibration's references on {data} were trained on other bytes; "
    "run `vetgate calibrate {data}`",
    Code.NOTHING_INSPECTED: "no detector that is held against labels (`null` is LABEL) could be read; a verdict "
    "needs one",
    Code.NO_TRIGGER_FOUND: "no trigger was found for {lost} of {classes} labels; the model may hide its gradients",
    Code.LABELS_NOT_LOOKED_AT: "{method} looked at all but {labels} of {classes} labels, of which nothing is known",
    Code.SECOND_RUN_DIFFERS: "rescan: an independent run came out {decision}, so that nothing follows",
    Code.REFUSED: "{said}",
    Code.GIVEN_UP: "the store tells of {attempts} or more vettings of it that began and of none that ended; see the "
    "logs of the workers, then vet it, or raise max_attempts in the policy",
    Code.NOTHING_STANDS_OUT: "no label stands out from the others by more than the labels of clean reference models do",
    Code.UNCALIBRATED: "uncalibrated: the null is simulated, no clean model was looked at",
    Code.SEARCHED_IN_PART: "{method} searched {searched} of {classes} labels to the end, and looked at each of the "
    "others with {share:share} of a search",
    Code.DRIVEN_IN_PART: "{method} was not counted: the network is large, so that {share:share} of its channels were "
    "stimulated, and all of every reference's",
    Code.NOT_COUNTED: "{method} was not counted: there is no calibration for it",
    Code.OTHER_ARCHITECTURES: "{method} was not counted: no reference is on this data and of its architecture",
    Code.OTHER_DATA_SETS: "{method} was not counted: no reference is on this data",
    Code.ELSEWHERE: "no references of this data set: held against those of {data}, uncalibrated, rate not assured",
    Code.ELSEWHERE_MEASURED: "no references of this data set: held against those of {data}, uncalibrated, rate not "
    "assured (each data set left out in turn, {alarms} of {models} clean models raised an alarm)",
    Code.POOLED: "{references} references on this data set are too few to count to a rate of {level:g}: held against "
    "those of {data} together, uncalibrated, rate not assured",
    Code.OTHER_IMAGE_SIZE: "the references on this data set take images of {theirs}, the model of {given}: "
    "uncalibrated, rate not assured",
    Code.EXTRAPOLATED: "extrapolated: {references} references are too few to count to a rate of {level:g}",
    Code.RESCAN_OUT_OF_REACH: "rescan: nothing could be rarer beside these references than p = {least:.3g}, and the "
    "rate {alarm:g} of a rescan is lower; see what the report shows, and add references with `vetgate calibrate`",
    Code.RESCAN_EXTRAPOLATED: "rescan: the rate {alarm:g} is extrapolated from {references} references",
    Code.RESCAN_NO_ALARM: "rescan: p = {p_value:.3g} is no alarm at the rate {alarm:g} of a rescan",
    Code.WAIVED_UNTIL: "waived until {until}: {finding}, {said}",
    Code.REPAIR_FAILED: "repair {method} failed: {said}",
    Code.REPAIR_NOT_GOOD_ENOUGH: "repair {method} was not good enough: clean accuracy {accuracy_before:.3f} to "
    "{accuracy_after:.3f}, a loss of {loss:.3f} of which {loss_margin:.3f} may be chance on {images} images "
    "({loss_allowed:g} allowed beyond that); attack success {success_before:.3f} to {success_after:.3f} "
    "({success_allowed:g} allowed beyond {excused:.3f}; triggers of this size do {natural:.3f} by nature)",
    Code.REPAIR_SKIPPED: "repair {method} was skipped, with nothing to go by: it needs {lacks:datum}",
    Code.REPAIR_UNMEASURED: "repair {method} was skipped: the model fails for its training rows alone, and without a "
    "trigger nothing tells what it takes out",
    Code.REPAIR_UNCONFIRMED: "repair {method} was not good enough: once they teach nothing, {said:share} of the rows "
    "it went by get another label; less than half says that they were no poison, or too few of it",
    Code.REPAIR_NOT_TRIED: "repair {method} was not tried, since the copy of {good} had passed",
    Code.TOO_OLD: "it is {days} days old, {most} are allowed",
    Code.METHOD_ADDED: "{method} was not there",
    Code.METHOD_REMOVED: "{method} runs no longer",
    Code.CODE_CHANGED: "{method} has other code",
    Code.PARAMETERS_CHANGED: "{method} has other parameters",
    Code.POLICY_CHANGED: "the policy changed",
    Code.CALIBRATION_CHANGED: "the calibration changed",
    Code.GUARDS_CHANGED: "the run-time guards changed",
    Code.DATA_CHANGED: "the reference data changed",
    Code.NO_WAIVER: "{finding} has no waiver",
    Code.WAIVERS_NOT_ALLOWED: "{finding} cannot be waived under this policy",
    Code.NEVER_WAIVED_UNREAD: "{finding} can never be waived: what the file does is unknown",
    Code.NEVER_WAIVED_UNEXPLAINED: "{finding} can never be waived: the verdict does not say what it rests on; "
    "vet again",
    Code.NEVER_WAIVED_UNSIGNED: "{finding} cannot be waived: the submission is not signed, so that its submitter is "
    "unknown",
    # these follow the name of the finding
    Code.WAIVER_REVOKED: "has a waiver that was revoked",
    Code.WAIVER_EXPIRED: "has a waiver that expired on {expires}",
    Code.WAIVER_TOO_LONG: "has a waiver for more than the {most} days of the policy",
    Code.TOO_FEW_APPROVALS: "has {approvals} of {needed} approvals",
}


# what is wrong with the structure of a network
STRUCTURE = {
    Kind.AROUND: "a path from the image goes around the trained layers",
    Kind.IN_FRONT: "pixels are bent in front of the first trained layer",
    Kind.BESIDE: "a part that shares no trained layer with the rest joins behind the last one",
    Kind.SILENT: "a channel that no trusted image opens outweighs all others",
    Kind.COPIES: "kernels copy pixels through trained layers untouched",
}

# what a repair may lack, as methods declare it
DATA = {
    "clean": "trusted images",
    "train": "the supplier's training data",
    "inputs": "inputs to be screened",
    "flagged": "training rows that a detector flags",
    "triggers": "a trigger that leads to a suspected label",
    "neurons": "neurons that a detector names",
}


class _Formatter(string.Formatter):
    """Formats figures; one that is a word is written as it is, one that is missing is a dash."""

    def get_value(self, key: int | str, args: Any, kwargs: Any) -> Any:
        return kwargs.get(key, "–")

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec == "datum":
            return DATA.get(value, str(value))
        if format_spec == "structure":
            return STRUCTURE.get(value, "something is wired in a way that is not known")
        if format_spec == "to":
            return "many labels" if value is None else f"label {value}"
        if not isinstance(value, int | float) or isinstance(value, bool):
            return str(value)
        if format_spec == "share":
            return f"{100 * max(0.0, value):.0f} %"
        return format(value, format_spec)


def render(reason: Reason) -> str:
    """The sentence for a reason."""
    return _Formatter().vformat(
        WORDS[reason.code], (), {**reason.figures, "method": reason.method, "label": reason.label}
    )


def rendered(reasons: Iterable[Reason]) -> list[str]:
    """The sentences for reasons, in their order."""
    return [render(reason) for reason in reasons]


def render_failure(reason: Reason) -> str:
    """Why one method has no p-value, where its name stands beside: the words of its error, or the sentence."""
    if reason.code is Code.FAILED:
        return str(reason.figures.get("said"))
    return "did not run" if reason.code is Code.DID_NOT_RUN else render(reason)
