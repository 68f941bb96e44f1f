"""YAML 1.2 by its core schema, plain values only: `yes` and `1:30` are text, `0o17` is fifteen, a key is given once.

PyYAML reads YAML 1.1, by whose rules `1:30` is 90, `010` is 8 and `no` is false; its parser is used, its schema is not.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

DEEPEST = 4
NULL, BOOL, INT, FLOAT, TEXT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))
# as chapter 10.3.2 of the specification lists them
CORE = (
    (NULL, re.compile(r"null|Null|NULL|~|"), "nN~\0"),
    (BOOL, re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    (INT, re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), "-+0123456789"),
    (
        FLOAT,
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        "-+.0123456789",
    ),
)


def load_plain(text: str) -> Any:
    """The value of a YAML 1.2 document; raises ValueError or yaml.YAMLError on what is none, aliases or repeated keys."""
    # an alias can unfold to gigabytes, and the parser's time grows with the square of the depth
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("expected plain values, got an alias (*name); write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError("expected a mapping of plain values, got deep nesting; flatten it")
    return yaml.load(text, _Loader)  # noqa: S506 - it makes plain values only


def dump_plain(value: Any) -> str:
    """The text that `load_plain`, and readers of YAML 1.1 as well, read back as `value`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    yaml_constructors: dict[str | None, Any] = {
        tag: SafeConstructor.yaml_constructors[tag]
        for tag in (None, NULL, TEXT, "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
    }

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

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """`<<` is a key like any other."""


def _scalar(loader: _Loader, node: yaml.ScalarNode, tag: str) -> str:
    # a tag that is written out (`!!int 1:30`) asks for no other spelling
    text = str(loader.construct_scalar(node))
    if not any(known == tag and pattern.fullmatch(text) for known, pattern, _ in CORE):
        raise ValueError(f"expected {tag.rpartition(':')[2]} as YAML 1.2 writes it, got {reprlib.repr(text)}")
    return text


def _bool(loader: _Loader, node: yaml.ScalarNode) -> bool:
    return _scalar(loader, node, BOOL).lower() == "true"


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = _scalar(loader, node, INT)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = _scalar(loader, node, FLOAT)
    return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))


class _Dumper(yaml.SafeDumper):
    """Quotes what either version would read as something else than text."""


for _tag, _pattern, _first in CORE:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            _tag,
            re.compile(rf"(?:{_pattern.pattern})\Z"),
            [*_first.replace("\0", ""), *([""] if "\0" in _first else [])],
        )
for _tag, _construct in ((BOOL, _bool), (INT, _int), (FLOAT, _float)):
    _Loader.add_constructor(_tag, _construct)
