"""A program of the table, and what it becomes with its constants: a function, or one that reads and
prints."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from elpo_jax.tasks.code.inputs import DOMAINS, Domain, integer, letter

_CONSTANT = re.compile(r"\{([a-z])\}")
_READ = {
    "s": "input()",
    "t": "input()",
    "w": "input().split()",
    "x": "list(map(int, input().split()))",
    "y": "list(map(int, input().split()))",
    "m": "int(input())",
    "n": "int(input())",
}
# Constants that aren't drawn otherwise: a number, two letters, a mark.
_LETTER = letter("aeilnopr")
_CONSTANTS: Mapping[str, Domain] = {
    "k": integer(2, 8),
    "c": _LETTER,
    "d": _LETTER,
    "p": letter("-+*._/"),
}


@dataclass(frozen=True)
class Program:
    """A row of the table.

    Attributes:
      takes: names of the parameters, which say their types: s and t are texts, w is a list of
        words, x and y are lists of numbers, m and n are numbers.
      asks: what it computes, in words; '{k}' is a constant.
      code: the function's body; only its last line returns.
      slip: a part of the code, and what a hasty author writes instead.
      domains: of parameters and constants that aren't drawn as usual.
    """

    takes: str
    asks: str
    code: str
    slip: tuple[str, str]
    domains: Mapping[str, Domain] = field(default_factory=dict)

    @property
    def parameters(self) -> list[str]:
        return self.takes.split()

    def draw_constants(self, rng: np.random.Generator) -> dict[str, str]:
        """Constants as they stand in words and code, all different."""
        names = list(dict.fromkeys(_CONSTANT.findall(self.asks)))
        domains = {name: self.domains.get(name) or _CONSTANTS[name] for name in names}
        while True:
            drawn = {name: str(domain(rng, False)) for name, domain in domains.items()}
            if len(set(drawn.values())) == len(drawn):
                return drawn

    def draw_arguments(self, rng: np.random.Generator, small: bool) -> list[Any]:
        """Arguments, for an example (small) or a test."""
        return [(self.domains.get(name) or DOMAINS[name])(rng, small) for name in self.parameters]

    def body(self, constants: Mapping[str, str], slipped: bool = False) -> list[str]:
        """The lines of the body, right or as the hasty author writes them."""
        code = self.code.replace(*self.slip, 1) if slipped else self.code
        return filled(code, constants).split("\n")


def filled(template: str, constants: Mapping[str, str]) -> str:
    """A text with constants in place of '{k}' and the like; other braces stay."""
    return _CONSTANT.sub(lambda match: constants[match[1]], template)


def as_function(parameters: Sequence[str], body: Sequence[str]) -> str:
    """`def f(s): ...`"""
    return "\n    ".join([f"def f({', '.join(parameters)}):", *body])


def as_script(assignments: Mapping[str, str], body: Sequence[str]) -> str:
    """Assignments to the parameters, then the body, which prints what it would return."""
    *lines, last = body
    given = [f"{name} = {value}" for name, value in assignments.items()]
    return "\n".join([*given, *lines, f"print({last.removeprefix('return ')})"])


def reading(parameters: Sequence[str]) -> dict[str, str]:
    """Assignments that read each parameter from a line of its own."""
    return {name: _READ[name] for name in parameters}


def as_line(value: Any) -> str:
    """An argument as such a line holds it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
