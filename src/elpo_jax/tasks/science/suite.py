"""The science suite: chemistry questions for a calculator and a table of the elements."""

from collections.abc import Mapping, Sequence
from typing import Any

from elpo_jax.tasks import answers
from elpo_jax.tasks.base import Task, Verdict
from elpo_jax.tasks.problems import Call, Problem, ProblemSuite
from elpo_jax.tasks.science import amounts, compositions, facts, hops
from elpo_jax.tasks.science.elements import element_lookup
from elpo_jax.tasks.science.formulas import parse
from elpo_jax.tools.calculator import Calculator, format_number

LENGTHS = ("short", "long")
KINDS = (*amounts.KINDS, hops.COMPARISON, compositions.KIND, hops.MULTI_HOP)
_NEEDLESS = "number"  # the property that a detour looks up
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789", "_")
_VOTE_DIGITS = 3  # answers that agree so far are one answer in a majority vote


class ScienceSuite(ProblemSuite):
    """Generated chemistry questions with a solver for each.

    Kinds: molar_mass, mass_percent, moles_to_grams, grams_to_moles, atoms, comparison,
    empirical_formula, multi_hop, in equal shares. A fifth of the first five are multiple choice.
    No compound (by composition) and no set of elements is the subject of both splits.

    Args:
      length: 'short' (2-5 calls; formulas of two or three elements) or 'long' (4-8 calls;
        parentheses, hydrates, up to six elements).
      search: facts are found by searching a corpus, not by the lookup tool.
      corpus: passages to search instead of the suite's own facts. Solvers need those facts.

    Raises:
      ValueError: for another length.
    """

    name = "science"
    system_prompt = "Use the tools, one call a turn. End with the answer in \\boxed{}."

    def __init__(
        self, length: str = "short", search: bool = False, corpus: Sequence[str] | None = None
    ):
        if length not in LENGTHS:
            raise ValueError(f"ScienceSuite: length: expected one of {LENGTHS}, got {length!r}")
        source = facts.search_tool(corpus) if search else element_lookup()
        super().__init__([Calculator(), source], [length])
        self._length = length
        self._search = search

    def problem(self, split: str, index: int) -> Problem:
        problem = self._drawn(split, index)
        return facts.searching(problem) if self._search else problem

    def _drawn(self, split: str, index: int) -> Problem:
        rng = self.rng(split, index)
        kind = KINDS[rng.integers(len(KINDS))]
        if kind == hops.COMPARISON:
            return hops.comparison_problem(rng, self._length, split)
        if kind == hops.MULTI_HOP:
            return hops.multi_hop_problem(rng, self._length, split)
        if kind == compositions.KIND:
            return compositions.empirical_problem(rng, self._length, split)
        return amounts.amount_problem(rng, kind, self._length, split)

    def detour(self, problem: Problem, call: Call) -> Call | None:
        """The element's number, looked up before another property."""
        if self._search:
            return facts.detour(call, _NEEDLESS)
        if call.name != "lookup" or call.arguments["property"] == _NEEDLESS:
            return None
        return Call(call.name, {**call.arguments, "property": _NEEDLESS})

    def verify(self, task: Task, response: str) -> Verdict:
        """Judges the last `\\boxed{}` of a response.

        Numbers are right within 1 %, in the unit asked for or without one. Formulas are right with
        their elements in any order, as long as the subscripts are the smallest. Symbols may be
        given as names. Option letters stand alone.
        """
        inside = answers.boxed(response)
        if inside is None:
            return Verdict(False, None)
        judge = {"number": _number, "letter": _letter, "text": _text, "formula": _formula}
        return judge[task.answer["type"]](task.answer, inside)


def _number(answer: Mapping[str, Any], inside: str) -> Verdict:
    found = answers.quantity(inside)
    if found is None:
        return Verdict(False, inside)
    unit_fits = answers.is_unit(found.unit, answer["unit"])
    close = abs(found.value - answer["value"]) <= answer["rtol"] * abs(answer["value"])
    vote = format_number(found.value, _VOTE_DIGITS)
    return Verdict(unit_fits and close, vote if unit_fits else f"{vote} {found.unit}")


def _letter(answer: Mapping[str, Any], inside: str) -> Verdict:
    found = answers.letter(inside)
    return Verdict(found == answer["letter"], found or inside)


def _text(answer: Mapping[str, Any], inside: str) -> Verdict:
    found = answers.plain(inside)
    return Verdict(found in answer["accepted"], found)


def _formula(answer: Mapping[str, Any], inside: str) -> Verdict:
    try:
        found = parse(answers.plain(inside).translate(_SUBSCRIPTS)).key
    except ValueError:
        return Verdict(False, inside)
    return Verdict(found == parse(answer["formula"]).key, found)
