"""Write docs/methods.md from the registry: `python -m docs.methods`; with `--check`, exit 1 when it is stale."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import vetgate.detect
import vetgate.guard
import vetgate.repair  # noqa: F401
from docs.generated import settle
from vetgate.contract import DETECTORS, REPAIRS, Axis, Method
from vetgate.guard.contract import GUARDS, Guard
from vetgate.role import By, Confirm, repair_roles, role_of

T = TypeVar("T")
PAGE = Path(__file__).with_suffix(".md")
INSPECTS = {
    Axis.TRAIN: "the training set; one score a row",
    Axis.CLASS: "the model; one score a class label",
    Axis.INPUT: "inputs at run time; one score an input",
}
NULLS = {
    By.LABEL: "held against clean labels",
    By.MODEL: "held against clean models",
    By.NOTHING: "held against nothing",
}
CONFIRMS = {
    Confirm.HELD_OUT_AND_SECOND_START: "confirmed on unseen images and from a second start",
    Confirm.SUCCESS: "confirmed by the success of its trigger on unseen images",
    Confirm.REPEATED: "confirmed where a label stands out when it is measured again",
    Confirm.MISLABELLED: "confirmed where each of two networks by itself finds a label's rows wrong",
    Confirm.ROWS: "the rows it flags are the finding",
    Confirm.NEVER: "names no label",
    Confirm.PROVEN: "proven where what it found decides by itself once it is driven; a question otherwise",
}
LABELS = ("Source", "Deviates", "Blind to")
HEAD = """# Methods

Generated from the code by `make docs`; do not edit. Settings that differ from a default stand in `params.yaml`.
"""


def render(detectors: Sequence[Method], repairs: Sequence[Method], guards: Sequence[Guard] = ()) -> str:
    """The whole page."""
    blocks = [HEAD, "## Detectors\n", *map(section, detectors), "## Repairs\n", *map(section, repairs)]
    blocks += ["## Run-time guards\n", *map(guard_section, guards)] if guards else []
    return "\n".join(blocks)


def section(method: Method) -> str:
    """What the code declares about one method."""
    facts = [
        f"- Needs: {', '.join(sorted(method.needs))} samples"
        + (f", evidence with {method.uses}" if method.uses else "")
    ]
    role, repaired = role_of(method.name), repair_roles().get(method.name)
    named = role if method.kind == "detector" else repaired
    title = f"**{named.title}.** {named.sentence}" if named else ""
    if role is not None and method.kind == "detector":
        counted = f"weight {role.weight:g}" if role.weight else "advisory: shown, never counted"
        counted = "decides alone" if role.null is By.NOTHING else counted
        facts.append(f"- In a verdict: {counted}; {NULLS[role.null]}; {CONFIRMS[role.confirm]}")
        facts += ["- Counts where references are on the model's data and of its architecture"] * role.by_architecture
        facts += ["- Passes through the network may be computed on a GPU (`VETGATE_DEVICE`)"] * role.on_device
    if method.axis is not None:
        facts.insert(0, f"- Inspects: {INSPECTS[method.axis]}")
    return _entry(method, title, facts, method.function)


def guard_section(guard: Guard) -> str:
    """What the code declares about one guard."""
    uses = f", evidence with {guard.role.uses}" if guard.role.uses else ""
    facts = [f"- Needs: {', '.join(sorted(guard.needs))} samples{uses}"]
    facts += ["- Guards networks with batch normalisation"] * guard.role.normalisation
    facts += ["- Votes: it can say what an input should have been taken for"] * guard.role.votes
    return _entry(guard, f"**{guard.role.title}.** {guard.role.sentence}", facts, guard.fitting)


def _entry(method: Method | Guard, title: str, facts: list[str], call: Callable[..., object]) -> str:
    prose, notes = split_doc(method.doc)
    facts += [f"- Paper: <{method.paper}>"] if method.paper else []
    facts += [f"- {label}: {text}" for label, text in notes.items()]
    facts += [f"- Waived: `{check}`: {reason}" for check, reason in sorted(method.waived.items())]
    hyper = [f"| `{name}` | `{default}` |" for name, default in method.defaults.items()]
    table = ["| hyper-parameter | default |", "|---|---|", *hyper, ""] if hyper else []
    said = (inspect.getdoc(call) or "").strip()
    return "\n".join([f"### {method.name}\n", title, "", prose, "", *facts, "", said, "", *table])


def split_doc(doc: str) -> tuple[str, dict[str, str]]:
    """The prose of a module's docstring and its labelled notes, each unwrapped to one line."""
    prose: list[str] = []
    notes: dict[str, str] = {}
    label = ""
    for line in doc.splitlines():
        found = next((name for name in LABELS if line.startswith(name + " ")), "")
        if found:
            label, line = found, line[len(found) :]
        elif label and line and not line.startswith(" "):
            label = ""
        if label:
            notes[label] = f"{notes.get(label, '')} {line.strip()}".strip()
        else:
            prose.append(line)
    return "\n".join(prose).strip(), notes


def _sorted(registry: Mapping[str, T]) -> list[T]:
    return [registry[name] for name in sorted(registry)]


def main(arguments: Sequence[str]) -> int:
    """Write the page, or with --check say whether it is up to date."""
    page = render(_sorted(DETECTORS), _sorted(REPAIRS), _sorted(GUARDS))
    return settle(PAGE, page, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
