"""Static search for the functions that handle the whole TrainConfig ("stops of the config").

structure.py counts them.

The search starts at the function of src/finetune that is named `train` and has a parameter
annotated TrainConfig. From each function, it goes on to the functions of src/finetune that the code
names, to the `__init__` of classes that it calls, and to properties that it reads. A nested
function belongs to the function around it.

A call site is a call that passes a value of type TrainConfig to a function or class of
src/finetune, such as `config`, or `run.config` of the object that `train` builds. A stop is a
function that the search finds and that meets one of three conditions: it has a parameter annotated
`TrainConfig` or `TrainConfig | None`, it contains a call site, or it is called at one.

Types come from annotations of parameters, attributes, properties and return values. A name or
attribute without an annotation has the type of the value that is assigned to it. Containers and
loop variables have no type, so functions that are reached only through them are not found.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.source_tree import FUNCTIONS, Function, Module

START, CONFIG = "train", "TrainConfig"


@dataclass(frozen=True, eq=False)
class Definition:
    """A function, method or class.

    Attributes:
        name: its dotted name.
        owner: for a method, the dotted name of its class.
    """

    name: str
    module: Module
    node: Function | ast.ClassDef
    owner: str = ""


@dataclass
class Stops:
    """Places in the source that handle the whole TrainConfig, in the order of the search.

    Attributes:
        functions: functions with a TrainConfig parameter, functions that pass a TrainConfig in a
            call, and functions that are called with one.
        calls: the calls that pass a TrainConfig.
    """

    functions: list[str]
    calls: list[str]


class Code:
    """The definitions of a package, by dotted name, and the types that annotations give them."""

    def __init__(self, modules: list[Module]) -> None:
        self.definitions: dict[str, Definition] = {}
        self.names: dict[str, dict[str, str]] = defaultdict(dict)
        self._attributes: dict[str, dict[str, str]] = {}
        for module in modules:
            names = self.names[module.name]
            for one in module.imports(type_checking=True):
                names[one.local] = one.target
            for node in module.tree.body:
                if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
                    names[node.name] = f"{module.name}.{node.name}"
                    self._define(Definition(names[node.name], module, node))

    def _define(self, definition: Definition) -> None:
        self.definitions[definition.name] = definition
        if isinstance(definition.node, ast.ClassDef):
            for node in definition.node.body:
                if isinstance(node, FUNCTIONS):
                    name = f"{definition.name}.{node.name}"
                    self._define(Definition(name, definition.module, node, definition.name))

    def is_class(self, name: str) -> bool:
        return name in self.definitions and isinstance(self.definitions[name].node, ast.ClassDef)

    def dotted(self, module: Module, node: ast.expr) -> str:
        """Return the dotted name of the object that `node` refers to.

        Return an empty string if `node` is not a name or an attribute of a module.
        """
        if isinstance(node, ast.Name):
            return self.names[module.name].get(node.id, "")
        if isinstance(node, ast.Attribute) and (owner := self.dotted(module, node.value)):
            return f"{owner}.{node.attr}"
        return ""

    def annotated(self, module: Module, annotation: ast.expr | None) -> str:
        """Return the dotted name of the class `X` in an annotation `X`, `"X"` or `X | None`.

        Return an empty string if the annotation names no class of the package.
        """
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        if isinstance(annotation, ast.BinOp):
            return self.annotated(module, annotation.left) or self.annotated(module, annotation.right)
        name = self.dotted(module, annotation) if annotation else ""
        return name if self.is_class(name) else ""

    def returned(self, name: str) -> str:
        """Return the type of the value that a call of `name` returns, as the dotted name of a class.

        Return an empty string if the class is unknown or not in the package.

        Args:
            name: dotted name of a function or class.
        """
        definition = self.definitions.get(name)
        if definition is None:
            return ""
        if isinstance(definition.node, ast.ClassDef):
            return name
        return self.annotated(definition.module, definition.node.returns)

    def method(self, owner: str, name: str) -> str:
        """Return the dotted name of a method that a class defines or inherits.

        Return an empty string if the class or the method is not found.

        Args:
            owner: dotted name of the class.
            name: name of the method.
        """
        definition = self.definitions.get(owner)
        if definition is None or not isinstance(definition.node, ast.ClassDef):
            return ""
        if f"{owner}.{name}" in self.definitions:
            return f"{owner}.{name}"
        for base in definition.node.bases:
            if found := self.method(self.dotted(definition.module, base), name):
                return found
        return ""

    def attribute(self, owner: str, name: str) -> str:
        """Return the type of an attribute or property of the class `owner`.

        The type is the dotted name of a class of the package, or an empty string if it is unknown.
        """
        if not self.is_class(owner):
            return ""
        if owner not in self._attributes:
            self._attributes[owner] = {}  # ends the recursion of self-assignment
            self._attributes[owner] = dict(self._declared(self.definitions[owner]))
        return self._attributes[owner].get(name, "")

    def _declared(self, definition: Definition) -> Iterator[tuple[str, str]]:
        """Yield the attributes of a class, with their types.

        Attributes that its methods assign come first, then those that its body declares.
        """
        assert isinstance(definition.node, ast.ClassDef)
        for node in definition.node.body:
            if isinstance(node, FUNCTIONS):
                yield from Scope(self, self.definitions[f"{definition.name}.{node.name}"]).of_self()
        for node in definition.node.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id, self.annotated(definition.module, node.annotation)
            elif isinstance(node, FUNCTIONS) and is_property(node):
                yield node.name, self.annotated(definition.module, node.returns)


class Scope:
    """The types of a function's local names. They are needed to find the types of its expressions."""

    def __init__(self, code: Code, definition: Definition) -> None:
        self._code = code
        self._module = definition.module
        self._node = definition.node
        self._types: dict[str, str] = {}
        self._locals: set[str] = set()
        for node in ast.walk(self._node):
            if isinstance(node, ast.arg):
                self._types[node.arg] = code.annotated(self._module, node.annotation)
                self._locals.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._locals.add(node.id)
        if definition.owner:
            self._types["self"] = definition.owner
        for target, kind in self._assigned():
            if isinstance(target, ast.Name) and kind:
                self._types[target.id] = kind

    def of_self(self) -> Iterator[tuple[str, str]]:
        """Yield the name and type of each attribute of `self` that this method assigns.

        Attributes of unknown type are left out.
        """
        for target, kind in self._assigned():
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self" and kind:
                yield target.attr, kind

    def _assigned(self) -> Iterator[tuple[ast.expr, str]]:
        """Yield each target that this function assigns or binds by `with`, and its type, in order.

        The type is an empty string if it is unknown.
        """
        nodes = [node for node in ast.walk(self._node) if isinstance(node, ast.stmt | ast.NamedExpr)]
        for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
            if isinstance(node, ast.AnnAssign):
                yield node.target, self._code.annotated(self._module, node.annotation)
            elif isinstance(node, ast.NamedExpr):
                yield node.target, self.type_of(node.value)
            elif isinstance(node, ast.With | ast.AsyncWith):
                for item in node.items:
                    if item.optional_vars:
                        yield item.optional_vars, self.type_of(item.context_expr)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    yield from self._pairs(target, node.value)

    def _pairs(self, target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, str]]:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, other in zip(target.elts, value.elts, strict=False):
                yield one, self.type_of(other)
        else:
            yield target, self.type_of(value)

    def type_of(self, node: ast.expr) -> str:
        """Return the dotted name of the class of an expression's value.

        Return an empty string if the class is unknown or not in the package.
        """
        if isinstance(node, ast.Name):
            return self._types.get(node.id, "")
        if isinstance(node, ast.Attribute):
            return self._code.attribute(self.type_of(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self._code.returned(self.target(node.func))
        if isinstance(node, ast.NamedExpr):
            return self.type_of(node.value)
        if isinstance(node, ast.IfExp):
            return self.type_of(node.body) or self.type_of(node.orelse)
        return ""

    def target(self, node: ast.expr) -> str:
        """Return the dotted name of the function or class that an expression refers to.

        Return an empty string if it refers to none in the package.
        """
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if not (isinstance(root, ast.Name) and root.id in self._locals):
            dotted = self._code.dotted(self._module, node)
            if dotted in self._code.definitions:
                return dotted
        if isinstance(node, ast.Attribute):
            return self._code.method(self.type_of(node.value), node.attr)
        return ""

    def function(self, node: ast.expr) -> str:
        """Return the dotted name of the function that runs if `node` is called.

        For a class, it is its `__init__`. Return an empty string if the function is not in the
        package.
        """
        target = self.target(node)
        return self._code.method(target, "__init__") if self._code.is_class(target) else target

    def reached(self) -> Iterator[str]:
        """Yield the dotted names of the package's functions that this function calls or mentions."""
        for node in ast.walk(self._node):
            name = ""
            if isinstance(node, ast.Call):
                name = self.function(node.func)
            elif isinstance(node, ast.Name | ast.Attribute) and not self._code.is_class(self.target(node)):
                name = self.target(node)
            if name:
                yield name

    def passes(self, config: str) -> Iterator[ast.Call]:
        """Yield the calls in this function that pass a value of class `config`.

        Only calls of functions and classes of the package are considered.
        """
        for node in ast.walk(self._node):
            if isinstance(node, ast.Call) and self.target(node.func):
                values = [*node.args, *(keyword.value for keyword in node.keywords)]
                if any(self.type_of(value) == config for value in values):
                    yield node


def is_property(node: Function) -> bool:
    return any(ast.unparse(decorator).endswith("property") for decorator in node.decorator_list)


def receives(code: Code, definition: Definition, config: str) -> bool:
    """Return True if a definition is a function with a parameter of the class `config`."""
    if isinstance(definition.node, ast.ClassDef):
        return False
    arguments = definition.node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return any(code.annotated(definition.module, argument.annotation) == config for argument in every)


def find_config(code: Code) -> str:
    """Return the dotted name of the class TrainConfig.

    Raises:
        ValueError: there is no such class.
    """
    for name in code.definitions:
        if name.endswith(f".{CONFIG}"):
            return name
    raise ValueError(f"src/finetune: has no class {CONFIG}, so its stops cannot be counted")


def find_start(code: Code, config: str) -> str:
    """Return the dotted name of the function `train` with a parameter of class `config`.

    Raises:
        ValueError: there is no such function, or more than one.
    """
    found = []
    for name, definition in code.definitions.items():
        if definition.node.name == START and not definition.owner and receives(code, definition, config):
            found.append(name)
    if len(found) != 1:
        raise ValueError(f"src/finetune must have one function {START}(config: {CONFIG}), not {found}")
    return found[0]


def find_stops(modules: list[Module]) -> Stops:
    """Find the functions and calls that handle the whole TrainConfig, starting at `train`.

    Raises:
        ValueError: there is no class TrainConfig, or not exactly one function `train`.
    """
    code = Code(modules)
    config = find_config(code)
    waiting = [find_start(code, config)]
    reached = dict.fromkeys(waiting)
    stops: set[str] = set()
    calls = []
    while waiting:
        name = waiting.pop(0)
        definition = code.definitions[name]
        scope = Scope(code, definition)
        passes = list(scope.passes(config))
        if passes or receives(code, definition, config):
            stops.add(name)
        stops |= {scope.function(call.func) for call in passes}
        calls += [definition.module.at(call, ast.unparse(call.func)) for call in passes]
        for target in scope.reached():
            if target not in reached:
                reached[target] = None
                waiting.append(target)
    found = [code.definitions[name] for name in reached if name in stops]
    return Stops([one.module.at(one.node, one.name) for one in found], calls)
