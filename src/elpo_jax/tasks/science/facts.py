"""The facts of the suite's tables as sentences to search, and how its solvers search them.

An element is named by its symbol, its name, or a Z before its number: Z26.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

from elpo_jax.errors import RunFault
from elpo_jax.tasks.base import HELD_OUT, TRAIN
from elpo_jax.tasks.problems import Call, Problem, Solver
from elpo_jax.tasks.science.compounds import compounds
from elpo_jax.tasks.science.elements import Element, by_symbol, elements
from elpo_jax.tools.search import Search, index_folder

DESCRIPTION = "Finds facts about elements, such as Fe, iron or Z26, and compounds."
RESULTS = 1
# What the sentence about a property names the element by: not by what the sentence says.
_NAMED: Mapping[str, str] = {
    "number": "{name} ({symbol})",
    "symbol": "{name} (Z{number})",
    "name": "{symbol} (Z{number})",
}


def facts() -> tuple[str, ...]:
    """A sentence for each known property of each element, and for each compound."""
    return (*(fact for element in elements() for fact in _element(element)), *_compounds())


def search_tool(corpus: Sequence[str] | None) -> Search:
    """The search tool over a corpus, or over the facts."""
    return Search(corpus or facts(), index_folder(), DESCRIPTION, RESULTS)


def searching(problem: Problem) -> Problem:
    """The problem for a solver that has no lookup tool."""
    solve = problem.solve
    return replace(problem, solve=solve and (lambda: by_search(solve())))


def by_search(solver: Solver) -> Solver:
    """A solver that searches where another looks up.

    Raises:
      RunFault: the corpus doesn't have the fact.
    """
    result: str | None = None
    while True:
        try:
            call = next(solver) if result is None else solver.send(result)
        except StopIteration as stop:
            return stop.value
        if call.name == "lookup":
            name = call.arguments["property"]
            found = yield search_call(call.arguments["element"], name)
            opening, _, value = found.partition(" is ")
            if not opening.startswith(f"The {_words(name)} of ") or not value.endswith("."):
                words = f"expected a passage 'The {_words(name)} of ... is ...'"
                raise RunFault([f"suite.corpus: {words}, got {found[:80]!r}"])
            result = value.removesuffix(".")
        else:
            result = yield call


def detour(call: Call, name: str) -> Call | None:
    """A search for a property of the same element before another is searched."""
    if call.name != "search":
        return None
    asked, _, element = call.arguments["query"].rpartition(" ")
    reference = element[1:] if element[1:].isdigit() else element
    return None if asked == _words(name) else search_call(reference, name)


def search_call(element: str, name: str) -> Call:
    """The call that finds a property of an element, given by symbol, name or number."""
    return Call("search", {"query": f"{_words(name)} {'Z' if element.isdigit() else ''}{element}"})


def _element(element: Element) -> Iterator[str]:
    for name in Element.__dataclass_fields__:
        value = element.shown(name)
        if value is not None:
            words = _NAMED.get(name, "{name} ({symbol}, Z{number})")
            named = words.format(
                name=element.name.lower(), symbol=element.symbol, number=element.number
            )
            yield f"The {_words(name)} of {named} is {value}."


def _compounds() -> Iterator[str]:
    for length, split in product(("short", "long"), (TRAIN, HELD_OUT)):
        for compound in compounds(length, split):
            atoms = [
                f"{by_symbol()[symbol].name.lower()} {count}"
                for symbol, count in compound.composition.items()
            ]
            yield f"A unit of {compound.text} has these atoms: {', '.join(atoms)}."


def _words(name: str) -> str:
    return name.replace("_", " ")
