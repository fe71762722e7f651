"""Kinds of contract: what a part of the host must be like, for what relies on it to hold.

Each names what it pins, and says what it found where that is broken. `relied_on.py` lists them.
"""

import ast
import inspect
import textwrap
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Contract(ABC):
    """A name of ``owner``: a module, a class, or an object that exists when the contract is checked."""

    owner: Any
    name: str

    @property
    def what(self) -> str:
        """What is pinned, with its parameters or whatever else must hold."""
        return self._place

    @abstractmethod
    def broken(self) -> str | None:
        """What is found instead; None where the contract holds."""

    @property
    def _place(self) -> str:
        owner = self.owner
        if isinstance(owner, ModuleType):
            return f"{owner.__name__}.{self.name}"
        kind = owner if isinstance(owner, type) else type(owner)
        return f"{kind.__module__}.{kind.__qualname__}.{self.name}"

    def _function(self) -> Any:
        found = inspect.getattr_static(self.owner, self.name, None)
        return found.__func__ if isinstance(found, classmethod) else getattr(self.owner, self.name, None)


class OfFunction(Contract):
    """A function or class, by its parameters or its code."""

    def broken(self) -> str | None:
        function = self._function()
        return "it is missing" if function is None else self._wrong(function)

    @abstractmethod
    def _wrong(self, function: Any) -> str | None:
        """What is found of the function that is there; None where the contract holds."""


@dataclass(frozen=True)
class Takes(OfFunction):
    """A function or method that takes exactly these ``parameters``."""

    parameters: tuple[str, ...]

    @property
    def what(self) -> str:
        return f"{self._place}({', '.join(self.parameters)})"

    def _wrong(self, function: Any) -> str | None:
        names = tuple(p for p in inspect.signature(function, follow_wrapped=True).parameters if p != "cls")
        return None if names == self.parameters else f"it takes {', '.join(names)}"


@dataclass(frozen=True)
class Has(Contract):
    """An attribute, of whatever value."""

    def broken(self) -> str | None:
        return None if hasattr(self.owner, self.name) else "it is missing"


@dataclass(frozen=True)
class Names(OfFunction):
    """A function or class whose code has each of these ``words``: keys of a dict, attributes that it sets."""

    words: tuple[str, ...]

    @property
    def what(self) -> str:
        return f"{self._place} (with {', '.join(self.words)})"

    def _wrong(self, function: Any) -> str | None:
        seen = _words_of(function)
        gone = [word for word in self.words if word not in seen]
        return f"its code has no {', '.join(gone)}" if gone else None


@dataclass(frozen=True)
class ReadsOnly(OfFunction):
    """A method that reads no attributes of ``self`` but these, so that something else can stand in for it."""

    attributes: tuple[str, ...]

    @property
    def what(self) -> str:
        return f"{self._place} (of self only {', '.join(self.attributes)})"

    def _wrong(self, function: Any) -> str | None:
        read = {
            node.attr
            for node in ast.walk(_tree(function))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        }
        more = sorted(read - set(self.attributes))
        return f"it reads self.{', self.'.join(more)}" if more else None


@dataclass(frozen=True)
class CallsOnly(Contract):
    """A method, where the class has one of its own, that calls nothing but these, so that it may be skipped."""

    calls: tuple[str, ...]

    @property
    def what(self) -> str:
        return f"{self._place} (which may call only {', '.join(self.calls)})"

    def broken(self) -> str | None:
        if self.name not in vars(self.owner):
            return None
        made = {ast.unparse(node.func) for node in ast.walk(_tree(self._function())) if isinstance(node, ast.Call)}
        more = sorted(made - set(self.calls))
        return f"it calls {', '.join(more)}" if more else None


def _tree(function: Any) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))


def _words_of(function: Any) -> set[str]:
    """Names, attributes and strings in the code."""
    words: set[str] = set()
    for node in ast.walk(_tree(function)):
        if isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
        elif isinstance(node, ast.FunctionDef):
            words.add(node.name)
    return words
