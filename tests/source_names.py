"""Find what our code uses of another package, and look it up in sources that are read and never imported.

The values of expressions are followed as far as imports, calls, annotations and attributes of `self` tell them. An
expression whose value is not known is skipped.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Value:
    """A module, or a class, an instance of it or a function in `module`. A module has no node."""

    module: str
    node: ast.ClassDef | Function | None = None
    instance: bool = False
    owner: ast.ClassDef | None = None  # of a method


UNKNOWN = Value("")


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module or class, also those under `if`, `try` and `with`."""
    for statement in body:
        yield statement
        for part in ("body", "orelse", "finalbody"):
            if isinstance(statement, (ast.If, ast.Try, ast.With)):
                yield from statements(getattr(statement, part, []))
        if isinstance(statement, ast.Try):
            for handler in statement.handlers:
                yield from statements(handler.body)


class Sources:
    """The Python files of one package under the folder `root`."""

    def __init__(self, root: Path, package: str) -> None:
        self.root, self.package = root, package
        self.tree, self.file = cache(self._tree), cache(self._file)
        self.binary = cache(Path.read_bytes)
        self._open: set[tuple[str, str]] = set()  # names that are looked up at the moment: modules import each other

    def _file(self, module: str) -> Path | None:
        path = self.root.joinpath(*module.split("."))
        for file in (path / "__init__.py", path.with_suffix(".py"), path.with_suffix(".so"), path / "__init__.pyi"):
            if file.exists():
                return file
        return path if path.is_dir() else None

    def _tree(self, module: str) -> ast.Module:
        file = self.file(module)
        return ast.parse(file.read_text() if file and file.suffix == ".py" else "")

    def member(self, value: Value, name: str) -> Value | None:
        """Return the attribute `name` of a value, UNKNOWN if it has some value, None if there is no such attribute."""
        if value == UNKNOWN or (name.startswith("__") and name.endswith("__")):
            return UNKNOWN
        if value.node is None:
            return self._of_module(value.module, name)
        if isinstance(value.node, ast.ClassDef):
            return self._of_class(value, value.node, name)
        return UNKNOWN

    def _of_module(self, module: str, name: str) -> Value | None:
        if (file := self.file(module)) and file.suffix == ".so":
            return Value(f"{module}.{name}") if name.encode() in self.binary(file) else None
        parent, _, owner = module.rpartition(".")
        if file is None and (binary := self.file(parent)):  # a class of compiled code holds its methods' names
            return Value(module) if f"{owner}.{name}".encode() in self.binary(binary) else None
        found: Value | None = None
        for statement in statements(self.tree(module).body):
            if isinstance(statement, (ast.ClassDef, *FUNCTION)) and statement.name == name and not is_overload(statement):
                return Value(module, statement)
            if isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    if (alias.asname or alias.name) == name:
                        found = self.imported(self.absolute(module, statement), alias.name) or found
            if isinstance(statement, (ast.Assign, ast.AnnAssign)) and name in assigned(statement):
                found = self._assigned(module, statement) if found in (None, UNKNOWN) else found
        if found is None and self.file(f"{module}.{name}"):
            return Value(f"{module}.{name}")
        if found is None and self.tree(module).body:  # a table of names that are loaded when they are used
            strings = {n.value for n in ast.walk(self.tree(module)) if isinstance(n, ast.Constant)}
            lazy = any(isinstance(s, FUNCTION) and s.name == "__getattr__" for s in self.tree(module).body)
            return UNKNOWN if lazy and name in strings else None
        return found

    def _assigned(self, module: str, statement: ast.Assign | ast.AnnAssign) -> Value:
        """The value of a module's variable: an instance where a class of the module is called, or is its annotation."""
        made = statement.value.func if isinstance(statement.value, ast.Call) else None
        if isinstance(statement, ast.AnnAssign):
            made = statement.annotation
        return self.annotated(module, made) if isinstance(made, (ast.Name, ast.Constant)) else UNKNOWN

    def imported(self, module: str, name: str) -> Value | None:
        """The value of `from module import name`; UNKNOWN if the module is of another package."""
        if module.partition(".")[0] != self.package:
            return UNKNOWN
        if self.file(module) is None or (module, name) in self._open:
            return None
        self._open.add((module, name))
        try:
            return self._of_module(module, name)
        finally:
            self._open.discard((module, name))

    def absolute(self, module: str, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        file = self.file(module)
        parts = module.split(".")
        parts = parts[: len(parts) - statement.level + (file is not None and file.name == "__init__.py")]
        return ".".join([*parts, *([statement.module] if statement.module else [])])

    def annotated(self, module: str, annotation: ast.expr | None, owner: ast.ClassDef | None = None) -> Value:
        """An instance of the class that an annotation names."""
        name = annotation.id if isinstance(annotation, ast.Name) else None
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            name = annotation.value
        if owner is not None and name in ("Self", owner.name):
            return Value(module, owner, instance=True)
        found = self._of_module(module, name) if name and name.isidentifier() else None
        if found and isinstance(found.node, ast.ClassDef) and not found.instance:
            return Value(found.module, found.node, instance=True)
        return UNKNOWN

    def _of_class(self, value: Value, node: ast.ClassDef, name: str) -> Value | None:
        for statement in statements(node.body):
            if isinstance(statement, FUNCTION) and statement.name == name and not is_overload(statement):
                is_property = any(isinstance(d, ast.Name) and "property" in d.id for d in statement.decorator_list)
                if is_property and value.instance:
                    return self.annotated(value.module, statement.returns, node)
                return Value(value.module, statement, owner=node)
            if isinstance(statement, (ast.Assign, ast.AnnAssign)) and name in assigned(statement):
                return UNKNOWN
        stored = (n for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
        if any(n.attr == name and ast.unparse(n.value) in ("self", "cls") for n in stored):
            return UNKNOWN
        for base in node.bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            of = self.annotated(value.module, base)
            if of != UNKNOWN and (found := self.member(Value(of.module, of.node, value.instance), name)):
                return found
        return None

    def call(self, value: Value, keywords: Iterable[str]) -> tuple[Value, list[str]]:
        """Return the value of a call, and those of its keyword arguments that do not exist."""
        if value.node is None:  # a method of compiled code, which may return an instance
            return value if self.file(value.module) is None else UNKNOWN, []
        if value.instance:
            return UNKNOWN, []
        if isinstance(value.node, FUNCTION):
            returned = self.annotated(value.module, value.node.returns, value.owner)
            return returned, missing_arguments(value.node, keywords)
        made = Value(value.module, value.node, instance=True)
        init = self._of_class(value, value.node, "__init__")
        if init and isinstance(init.node, FUNCTION):
            return made, missing_arguments(init.node, keywords)
        return made, [name for name in keywords if self._of_class(made, value.node, name) is None]


def is_overload(node: ast.ClassDef | Function) -> bool:
    return any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)


def assigned(statement: ast.Assign | ast.AnnAssign) -> set[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


def literal_keys(node: ast.expr) -> set[str]:
    """The keys that stand in a dictionary, or in dictionaries that are joined with `|`."""
    if isinstance(node, ast.BinOp):
        return literal_keys(node.left) | literal_keys(node.right)
    keys = node.keys if isinstance(node, ast.Dict) else ()
    return {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}


def missing_arguments(function: Function, keywords: Iterable[str]) -> list[str]:
    arguments = function.args
    if arguments.kwarg:
        return []
    names = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    return [keyword for keyword in keywords if keyword not in names]


@dataclass
class Uses(ast.NodeVisitor):
    """What one of our files uses of the package; `missing` names what the sources do not have."""

    sources: Sources
    names: dict[str, Value] = field(default_factory=dict)
    keys: dict[str, set[str]] = field(default_factory=dict)  # of the dictionaries that a name may stand for
    bases: list[Value] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)

    def read(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                for name in assigned(node):
                    self.keys.setdefault(name, set()).update(literal_keys(node.value))
        for _ in range(2):  # a method may use what a later one keeps in `self`
            self.visit(tree)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.partition(".")[0] == self.sources.package:
                self._note(alias.name, Value(alias.name) if self.sources.file(alias.name) else None)
                self.names[alias.asname or self.sources.package] = Value(
                    alias.name if alias.asname else self.sources.package
                )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module and not node.level and node.module.partition(".")[0] == self.sources.package:
            for alias in node.names:
                value = self._note(f"{node.module}.{alias.name}", self.sources.imported(node.module, alias.name))
                self.names[alias.asname or alias.name] = value

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        of = [value for base in node.bases if (value := self.value(base)) not in (None, UNKNOWN)]
        self.bases = [Value(v.module, v.node, True) for v in of if v]
        own = {n.name for n in node.body if isinstance(n, FUNCTION)}
        own |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
        for name in own if self.bases else ():
            self.names.setdefault(f"self.{name}", UNKNOWN)
        self.generic_visit(node)
        self.bases = []
        self.names = {name: value for name, value in self.names.items() if not name.startswith("self.") or not of}

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for left, right in pairs:
                value = self.value(right)
                if value is not None and (name := _name(left)):
                    self.names[name] = value

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.value(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.value(node)
        self.generic_visit(node)

    def value(self, node: ast.expr) -> Value | None:
        """The value of an expression of ours; None if it is nothing of the package."""
        if name := _name(node):
            if name in self.names:
                return self.names[name]
            if name.startswith("self.") and self.bases:
                return self._note(name.replace("self", _called(self.bases[0]), 1), self._inherited(name[5:]))
        if isinstance(node, ast.Attribute):
            of = self.value(node.value)
            if _is_super(node.value) and self.bases:
                return self._note(f"{_called(self.bases[0])}.{node.attr}", self._inherited(node.attr))
            if of is None or of == UNKNOWN:
                return of
            return self._note(f"{_called(of)}.{node.attr}", self.sources.member(of, node.attr))
        if isinstance(node, ast.Call):
            of = self.value(node.func)
            if of is None or of == UNKNOWN:
                return of
            keywords = [k.arg for k in node.keywords if k.arg]
            for keyword in node.keywords:
                if keyword.arg is None and isinstance(keyword.value, ast.Name):
                    keywords += sorted(self.keys.get(keyword.value.id, ()))
            made, missing = self.sources.call(of, keywords)
            self.used |= {f"{_called(of)}({keyword}=)" for keyword in keywords}
            self.missing |= {f"{_called(of)}({keyword}=)" for keyword in missing}
            return made
        return None

    def _inherited(self, name: str) -> Value | None:
        found = [value for base in self.bases if (value := self.sources.member(base, name))]
        return found[0] if found else None

    def _note(self, name: str, value: Value | None) -> Value:
        self.used.add(name)
        if value is None:
            self.missing.add(name)
        return value or UNKNOWN


def _called(value: Value) -> str:
    owner = f".{value.owner.name}" if value.owner else ""
    return value.module + owner + (f".{value.node.name}" if value.node else "")


def _name(node: ast.expr) -> str | None:
    """`x`, or `self.x`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return f"self.{node.attr}"
    return None


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def uses(sources: Sources, files: Iterable[Path]) -> tuple[set[str], set[str]]:
    """Return what the files use of the package, and what of it the sources do not have."""
    used: set[str] = set()
    missing: set[str] = set()
    for file in files:
        if sources.package not in (text := file.read_text()):
            continue
        one = Uses(sources)
        one.read(ast.parse(text))
        used |= one.used
        missing |= {f"{name} in {file.name}" for name in one.missing}
    return used, missing
