"""YAML 1.2 by its core schema, plain values only: `yes` and `1:30` are text, `010` is ten, and a key is given once.

PyYAML goes by YAML 1.1, where these are true, ninety and eight; its parser is used, its schema is not.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Hashable
from typing import Any, ClassVar

import yaml

DEEPEST = 4
NULL, BOOL, INT, FLOAT, TEXT, LIST, MAP = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")
)
# as chapter 10.3.2 of the specification lists them
CORE = {
    NULL: re.compile(r"null|Null|NULL|~|"),
    BOOL: re.compile(r"true|True|TRUE|false|False|FALSE"),
    INT: re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    FLOAT: re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
}
# PyYAML ends a line, and so a comment, at these; YAML 1.2 does not
BREAKS_OF_1_1 = re.compile("[\x85\u2028\u2029]")
# 64 bits in base 8 are 22; Python neither reads nor prints what has thousands of digits
MOST_DIGITS = 32


def load_plain(text: str) -> Any:
    """The value of a YAML 1.2 document; raises ValueError or yaml.YAMLError on anything else.

    So it does on what two readers may take differently or that no plain value needs: aliases, tags, other versions.
    """
    if (found := BREAKS_OF_1_1.search(text)) is not None:
        line = text.count("\n", 0, found.start()) + 1
        raise ValueError(f"{found[0]!a} in line {line}, which ends a line in YAML 1.1 only; remove it")
    return yaml.load(text, _Loader)  # noqa: S506 - it makes plain values only


def dump_plain(value: Any) -> str:
    """The text that `load_plain` reads back as `value`, and a reader of YAML 1.1 too."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _resolved(text: str) -> str:
    return next((tag for tag, pattern in CORE.items() if pattern.fullmatch(text)), TEXT)


class _Loader(yaml.SafeLoader):
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (None, NULL, TEXT, LIST, MAP)
    }

    depth = 0

    def get_event(self) -> yaml.Event:
        """The next event of the document, before anything is made of it; raises ValueError for one that may not be."""
        event: yaml.Event = super().get_event()  # type: ignore[no-untyped-call]
        # an alias can unfold to gigabytes, and the parser's time grows with the square of the depth
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("an alias (*name); write the value out")
        if isinstance(event, yaml.DocumentStartEvent) and (event.tags or event.version not in (None, (1, 2))):
            raise ValueError("a directive that is not %YAML 1.2; remove it")
        if (tag := getattr(event, "tag", None)) is not None:
            raise ValueError(f"the tag {reprlib.repr(tag)}; write the plain value")
        self.depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if self.depth > DEEPEST:
            raise ValueError("deep nesting; flatten it")
        return event

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return _resolved(value)
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ValueError(f"field names must be text, got {reprlib.repr(key)}")
            if key in seen:
                raise ValueError(f"the field {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version would read as something else."""

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        if kind is yaml.ScalarNode and implicit[0] and (tag := _resolved(value)) != TEXT:
            return tag
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]


def _bool(loader: _Loader, node: yaml.ScalarNode) -> bool:
    return str(node.value).lower() == "true"


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    if len(text) > MOST_DIGITS:
        raise ValueError(
            f"the number {reprlib.repr(text)} of {len(text)} characters; write one of at most {MOST_DIGITS}"
        )
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


for _tag, _construct in ((BOOL, _bool), (INT, _int), (FLOAT, _float)):
    _Loader.add_constructor(_tag, _construct)
