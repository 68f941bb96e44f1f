"""Write docs/reference/onnx.md from the table: `python -m docs.onnx_operators`; --check as in docs.methods."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from docs.generated import settle
from vetgate.formats.onnx.table import OPERATORS, OPSETS, Operator

PAGE = Path(__file__).parent / "reference" / "onnx.md"
HEAD = """# Operators of ONNX

Generated from the code by `make docs`; do not edit.

Opsets {first} to {last}, standard domain only. What else a file may hold, and how to export it:
[Hand in an ONNX model](../how-to/onnx.md). Operators that are not listed are refused, all of them in one message. What
is "of shapes and constants" is computed beforehand; of activations it would compare, round or count, and is refused.

| operator | from opset | inputs | attributes | of |
| --- | --- | --- | --- | --- |
"""


def render() -> str:
    """The whole page."""
    return HEAD.format(first=OPSETS.start, last=OPSETS.stop - 1) + "".join(rows())


def rows() -> Iterator[str]:
    """A row for each operator, by name."""
    for name, operator in sorted(OPERATORS.items()):
        of = "shapes and constants" if operator.on_constants else "anything"
        yield f"| `{name}` | {operator.since} | {_inputs(operator)} | {_attributes(operator)} | {of} |\n"


def _inputs(operator: Operator) -> str:
    least, most = operator.inputs
    return str(least) if least == most else f"{least} to {most}"


def _attributes(operator: Operator) -> str:
    return ", ".join(
        f"`{name}`" + (f" (before {spec.before})" if spec.before < OPSETS.stop else "")
        for name, spec in sorted(operator.attributes.items())
    )


def main(arguments: Sequence[str]) -> int:
    """Write the page, or with --check say whether it is up to date."""
    return settle(PAGE, render(), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
