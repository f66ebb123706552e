"""What the solvers of this suite have in common: look-ups."""

from collections.abc import Generator, Sequence

from elpo_jax.tasks.problems import Call
from elpo_jax.tasks.science.formulas import Formula


def look_up(element: str, name: str) -> Generator[Call, str, str]:
    """The value of a property, without its unit."""
    shown = yield Call("lookup", {"element": element, "property": name})
    return shown.split()[0]


def look_up_weights(symbols: Sequence[str]) -> Generator[Call, str, dict[str, str]]:
    weights = {}
    for symbol in symbols:
        weights[symbol] = yield from look_up(symbol, "atomic_weight")
    return weights


def weigh(formula: Formula) -> Generator[Call, str, dict[str, str]]:
    """The shown atomic weights of a formula's elements."""
    return (yield from look_up_weights(list(formula.composition)))


def with_unit(number: str, unit: str) -> str:
    return f"{number}{'' if unit in ('', '%') else ' '}{unit}"
