"""Which definitions of a package a function reaches by name: an outline that does not depend on where they stand.

Names are followed through imports, from function to function; of a class without a foreign base only those methods
count whose names the reached code mentions. Each definition is a syntax tree without docstrings and annotations, and
beside it stands what its names lead to, so that exchanging two definitions of one name shows. Trees are written without
empty fields, which differ between versions of Python. Errors are left at their names: they say how a failure is told,
and change no number.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ERRORS = "errors"
# fields of a tree that say nothing of what it does
UNSAID = frozenset({"ctx", "kind", "type_comment"})
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
Unit = tuple[str, str]  # module, and a name, Class.member, or "" for what a module does when it is imported


def outline(package: Path, starts: Sequence[Unit]) -> list[Any]:
    """What the starts reach, as JSON values: [tree, {name: position in the list, or what is imported}] each.

    Raises FileNotFoundError for a module, KeyError for a name that is not there.
    """
    reach = _Reach(package, starts)
    order, todo = dict.fromkeys(starts), list(starts)
    while todo:
        for unit in reach.next_to(todo.pop(0)):
            if unit not in order:
                order[unit] = None
                todo.append(unit)
    position = {unit: index for index, unit in enumerate(order)}
    return [
        [_plain(reach.found[unit].tree), {n: t if isinstance(t, str) else position[t] for n, t in leads}]
        for unit in order
        for leads in [sorted(reach.found[unit].leads.items())]
    ]


def without_docstrings(tree: ast.Module) -> ast.Module:
    """The tree, changed in place."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, *DEFINITIONS)) and _says(node.body[:1]):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


@dataclass(frozen=True)
class _Found:
    """One definition: its tree, what its names lead to, and the attributes that it mentions."""

    tree: ast.AST
    leads: dict[str, Unit | str]
    mentions: frozenset[str]


class _Reach:
    """Everything that is reached, in no order."""

    def __init__(self, package: Path, starts: Sequence[Unit]) -> None:
        self.package, self.starts = package, frozenset(starts)
        self.modules: dict[str, _Module] = {}
        self.found: dict[Unit, _Found] = {}
        self.mentioned: set[str] = set()
        todo = list(starts)
        while todo:
            unit = todo.pop()
            if unit not in self.found:
                self.found[unit] = self._read(unit)
                self.mentioned |= self.found[unit].mentions
            todo += [n for u in list(self.found) for n in self.next_to(u) if n not in self.found] if not todo else []

    def next_to(self, unit: Unit) -> Iterator[Unit]:
        """What a definition leads to, in an order that does not depend on where things stand."""
        module, name = unit
        yield from (lead for _, lead in sorted(self.found[unit].leads.items()) if not isinstance(lead, str))
        definition = self._module(module).definitions.get(name, [None])[0]
        if isinstance(definition, ast.ClassDef):
            foreign = any(self._is_foreign(module, base) for base in definition.bases)
            for member in sorted(_members(definition)):
                if foreign or member in self.mentioned or (member.startswith("__") and member.endswith("__")):
                    yield module, f"{name}.{member}"
        if name and self._module(module).effects:
            yield module, ""

    def _module(self, name: str) -> _Module:
        if name not in self.modules:
            self.modules[name] = _Module(self.package, name)
        return self.modules[name]

    def _read(self, unit: Unit) -> _Found:
        module = self._module(unit[0])
        tree = module.tree_of(unit[1], registered=unit in self.starts)
        leads: dict[str, Unit | str] = {}
        mentions: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and (lead := self._lead(module, node.id)) is not None:
                leads[node.id] = lead
            elif isinstance(node, ast.Attribute):
                mentions.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                # getattr takes names as strings
                mentions.add(node.value)
        return _Found(tree, {n: lead for n, lead in leads.items() if lead != unit}, frozenset(mentions))

    def _lead(self, module: _Module, name: str) -> Unit | str | None:
        """Where a name in a module leads: a definition of the package, the words for what is imported, or nowhere."""
        if name in module.definitions:
            return module.name, name
        if name not in module.imports:
            return None
        origin, what = module.imports[name]
        top, _, inside = origin.partition(".")
        if top != self.package.name:
            return f"{origin}:{what}"
        if inside == ERRORS:
            return f"{ERRORS}:{what}"
        if _file(self.package, f"{inside}.{what}".strip(".")) is not None:
            raise ValueError(f"expected names from {origin}, got the module {what} in {module.name}; import its names")
        return self._lead(self._module(inside), what)

    def _is_foreign(self, module: str, base: ast.expr) -> bool:
        return not isinstance(base, ast.Name) or not isinstance(self._lead(self._module(module), base.id), tuple)


@dataclass(eq=False)
class _Module:
    """A module as it is written: its definitions by name, its imports, and what it does beside defining."""

    package: Path
    name: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, Unit] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)

    def __post_init__(self) -> None:
        path = _file(self.package, self.name)
        if path is None:
            raise FileNotFoundError(f"expected the module {self.name} in {self.package}, got no file")
        tree = without_docstrings(ast.parse(path.read_text()))
        self.imports = _imports(tree)
        for statement in _Bare().visit(tree).body:
            names = list(_bound(statement))
            for name in names:
                self.definitions.setdefault(name, []).append(statement)
            if not names and not (isinstance(statement, ast.If) and not statement.body):
                self.effects.append(statement)

    def tree_of(self, name: str, *, registered: bool) -> ast.Module:
        """A definition; of a class its members that are no methods, of a registered method not what registers it."""
        top, _, member = name.partition(".")
        statements = self.definitions[top] if name else self.effects
        first = statements[0]
        if member:
            statements = _members(first)[member]
        elif registered and isinstance(first, ast.FunctionDef):
            statements = [ast.FunctionDef(first.name, first.args, first.body, [])]
        elif isinstance(first, ast.ClassDef):
            methods = {id(m) for found in _members(first).values() for m in found}
            fields = [node for node in first.body if id(node) not in methods]
            statements = [ast.ClassDef(first.name, first.bases, first.keywords, fields, first.decorator_list)]
        return ast.Module(list(statements), [])


class _Bare(ast.NodeTransformer):
    """Takes off annotations of functions, which change no number, and imports: what names lead to stands beside."""

    def __init__(self) -> None:
        self.in_class = False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns, within, self.in_class = None, self.in_class, False
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        self.generic_visit(node)
        self.in_class = within
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        within, self.in_class = self.in_class, True
        self.generic_visit(node)
        self.in_class = within
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        # a dataclass is made of its annotations
        if self.in_class:
            return node
        return None if node.value is None else ast.Assign([node.target], self.visit(node.value))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Import(self, node: ast.Import) -> None:
        return None


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement of a module defines."""
    if isinstance(statement, DEFINITIONS):
        yield statement.name
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.If | ast.Try):
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, DEFINITIONS):
                yield node.name


def _members(definition: ast.stmt) -> dict[str, list[ast.stmt]]:
    """The methods of a class by name; a property and its setter share one."""
    found: dict[str, list[ast.stmt]] = {}
    for node in definition.body if isinstance(definition, ast.ClassDef) else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.setdefault(node.name, []).append(node)
    return found


def _imports(tree: ast.AST) -> dict[str, Unit]:
    """What each name that is imported anywhere in a module stands for: a module and a name in it, "" for all of it."""
    found: dict[str, Unit] = {}
    for node in ast.walk(tree):
        named: dict[str, Unit] = {}
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = alias.name if alias.asname else alias.name.partition(".")[0]
                named[alias.asname or module] = (module, "")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"expected absolute imports, got one of level {node.level}; name the package")
            named = {alias.asname or alias.name: (str(node.module), alias.name) for alias in node.names}
        for name, origin in named.items():
            if found.setdefault(name, origin) != origin:
                raise ValueError(
                    f"expected one meaning of {name}, got imports from {found[name]} and {origin}; rename one"
                )
    return found


def _file(package: Path, module: str) -> Path | None:
    place = package.joinpath(*module.split("."))
    return next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()), None)


def _says(first: Sequence[ast.stmt]) -> bool:
    """Whether a body begins with a docstring."""
    value = first[0].value if first and isinstance(first[0], ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _plain(node: object) -> Any:
    """A syntax tree as JSON values; what is empty is left out."""
    if isinstance(node, ast.AST):
        fields = {n: v for n, v in ast.iter_fields(node) if n not in UNSAID and v is not None and v != []}
        return [type(node).__name__, {name: _plain(value) for name, value in fields.items()}]
    if isinstance(node, list):
        return [_plain(item) for item in node]
    return [type(node).__name__, repr(node)]
