"""Fixtures: what Osprey promises to a user-defined function, in our own words; Osprey itself is on no package index.

Read from roostorg/osprey as of August 2026: engine/udf/{base,arguments,registry,type_evaluator}.py, executor/executor.py
and executor/node_executor/{call,binary_comparison}_executor.py. Kept: an instance for each call site, made when the
rules are compiled; arguments from annotations of the class and its parents, with defaults from the class and texts from
the source; literals as `ConstExpr`; types of arguments and results that rules know; a failed value is None, and goes on
as None only into arguments that may be None.
"""

import ast
import inspect
import sys
import textwrap
import types
import typing
from contextlib import contextmanager

import pytest

SCALARS = (str, float, int, bool, type(None))


class LiteralError(Exception):
    """What a rule's author sees at the place of a literal."""


Value = typing.TypeVar("Value")
Arguments = typing.TypeVar("Arguments")
Result = typing.TypeVar("Result")


class ConstExpr(typing.Generic[Value]):
    """A literal in a rule, known when the rules are compiled."""

    def __init__(self, value):
        self.value = value

    @contextmanager
    def attribute_errors(self):
        try:
            yield
        except Exception as error:
            raise LiteralError(f"{self.value}: {error}") from error


class ArgumentsBase:
    """Holds what a call site passes, or the class's defaults."""

    def __init__(self, given):
        for name, value in given.items():
            setattr(self, name, value)

    @classmethod
    def fields(cls):
        return {
            name: kind
            for parent in reversed(cls.__mro__)
            for name, kind in typing.get_type_hints(parent).items()
            if not name.startswith("_")
        }

    @classmethod
    def described(cls):
        """Name -> text below it in the source, as the registry of functions in Osprey's page shows."""
        found = {}
        for parent in cls.__mro__[: cls.__mro__.index(ArgumentsBase)]:
            [node] = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[field.target.id] = text.value.value
        return found


class UDFBase(typing.Generic[Arguments, Result]):
    """A function that rules may call."""

    execute_async = False
    category = None

    def __init__(self, validation_context, arguments):
        pass

    def execute(self, execution_context, arguments):
        raise NotImplementedError

    @classmethod
    def kinds(cls):
        [base] = cls.__orig_bases__
        return typing.get_args(base)


def is_known(kind):
    """Whether rules know a type: a scalar, one of them or None, or a list of them."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union, list):
        return all(map(is_known, typing.get_args(kind)))
    return kind in SCALARS


class Rules:
    """Functions by name, and the places that call them."""

    def __init__(self, functions):
        self.functions = {function.__name__: function for function in functions}
        assert len(self.functions) == len(functions), "a name is taken twice"
        for function in functions:
            arguments, result = function.kinds()
            assert is_known(result), (function, result)
            assert issubclass(arguments, ArgumentsBase)
            for kind in arguments.fields().values():
                assert is_known(kind) or typing.get_origin(kind) is ConstExpr, kind
            assert set(arguments.described()) == set(arguments.fields())
            assert inspect.getdoc(function)
        self.instances = []

    def site(self, function, **given):
        """A place in the rules that calls a function: `site(event)` is its value there, None where it failed.

        A value is a literal, or a lambda that takes it from the event; one that raises KeyError is missing there.
        """
        made = self.functions[function]
        kinds = made.kinds()[0].fields()
        unknown = set(given) - set(kinds)
        assert not unknown, unknown
        literals = {
            name: ConstExpr(value)
            for name, value in given.items()
            if typing.get_origin(kinds[name]) is ConstExpr
        }
        assert all(isinstance(literal.value, str) for literal in literals.values())
        needed = {name for name in kinds if not hasattr(made.kinds()[0], name)}
        assert needed <= set(given), needed - set(given)
        instance = made(None, made.kinds()[0](literals))
        self.instances.append(instance)

        def run(event):
            resolved = dict(literals)
            for name, value in given.items():
                if name in literals:
                    continue
                try:
                    resolved[name] = value(event) if callable(value) else value
                except KeyError:
                    resolved[name] = None
                if resolved[name] is None and type(None) not in typing.get_args(kinds[name]):
                    return None  # a failure goes on to whatever depends on it
            try:
                return instance.execute(None, made.kinds()[0](resolved))
            except Exception:
                return None

        return run


def at_least(value, limit):
    """`value >= limit` in a rule: of None it is false."""
    return value is not None and value >= limit


@pytest.fixture
def osprey(monkeypatch):
    """Osprey's modules, as far as a function imports them."""
    names = ("osprey", "osprey.engine", "osprey.engine.executor", "osprey.engine.udf")
    modules = {name: types.ModuleType(name) for name in names}
    modules["osprey.engine.executor.execution_context"] = context = types.ModuleType("execution_context")
    modules["osprey.engine.udf.arguments"] = arguments = types.ModuleType("arguments")
    modules["osprey.engine.udf.base"] = base = types.ModuleType("base")
    context.ExecutionContext = type("ExecutionContext", (), {})
    arguments.ArgumentsBase, arguments.ConstExpr = ArgumentsBase, ConstExpr
    base.UDFBase = UDFBase
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return Rules
