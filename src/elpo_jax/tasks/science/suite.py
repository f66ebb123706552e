"""The science suite: chemistry questions for a calculator and a table of the elements."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elpo_jax.tasks import answers
from elpo_jax.tasks.base import HELD_OUT, TRAIN, Message, Task, Verdict
from elpo_jax.tasks.science import amounts, compositions, hops
from elpo_jax.tasks.science.elements import element_lookup
from elpo_jax.tasks.science.formulas import parse
from elpo_jax.tasks.science.solving import Problem, Solver, with_detours
from elpo_jax.tools.base import Tool
from elpo_jax.tools.calculator import Calculator, format_number

LENGTHS = ("short", "long")
KINDS = (*amounts.KINDS, hops.COMPARISON, compositions.KIND, hops.MULTI_HOP)
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789", "_")
_VOTE_DIGITS = 3  # answers that agree so far are one answer in a majority vote


class ScienceSuite:
    """Generated chemistry questions with a solver for each.

    Kinds: molar_mass, mass_percent, moles_to_grams, grams_to_moles, atoms, comparison,
    empirical_formula, multi_hop, in equal shares. A fifth of the first five are multiple choice.
    No compound (by composition) and no set of elements is the subject of both splits.

    Args:
      length: 'short' (2-5 calls; formulas of two or three elements) or 'long' (4-8 calls;
        parentheses, hydrates, up to six elements).

    Raises:
      ValueError: for another length.
    """

    name = "science"
    system_prompt = "Use the tools, one call a turn. End with the answer in \\boxed{}."

    def __init__(self, length: str = "short"):
        if length not in LENGTHS:
            raise ValueError(f"ScienceSuite: length: expected one of {LENGTHS}, got {length!r}")
        self._length = length
        self._tools: dict[str, Tool] = {
            tool.name: tool for tool in (Calculator(), element_lookup())
        }

    @property
    def tools(self) -> Sequence[Tool]:
        return tuple(self._tools.values())

    def task(self, split: str, index: int) -> Task:
        """The `index`-th task of a split.

        Raises:
          ValueError: for an unknown split or a negative index.
        """
        problem = self._problem(split, index)
        calls = sum(message["role"] == "tool" for message in self._solve(problem.solve()))
        return Task(f"{split}/{index}", problem.kind, problem.question, problem.answer, calls)

    def subject(self, task: Task) -> str:
        """The key that decided the task's split."""
        return self._problem_of(task).subject

    def demonstration(self, task: Task, detours: float = 0.0) -> list[Message]:
        """The solver's turns, each tool message what the real tool answered.

        Args:
          task: one of this suite's.
          detours: share of the look-ups that a needless look-up comes before.

        Raises:
          ValueError: if the task is not this suite's.
        """
        problem = self._problem_of(task)
        rng = _rng(self.name, self._length, "detours", task.id)
        return self._solve(with_detours(problem.solve(), rng, detours))

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

    def _problem(self, split: str, index: int) -> Problem:
        if split not in (TRAIN, HELD_OUT):
            raise ValueError(f"task: split: expected {TRAIN!r} or {HELD_OUT!r}, got {split!r}")
        if index < 0:
            raise ValueError(f"task: index: expected >= 0, got {index}")
        rng = _rng(self.name, self._length, split, int(index))
        kind = KINDS[rng.integers(len(KINDS))]
        if kind == hops.COMPARISON:
            return hops.comparison_problem(rng, self._length, split)
        if kind == hops.MULTI_HOP:
            return hops.multi_hop_problem(rng, self._length, split)
        if kind == compositions.KIND:
            return compositions.empirical_problem(rng, self._length, split)
        return amounts.amount_problem(rng, kind, self._length, split)

    def _problem_of(self, task: Task) -> Problem:
        split, _, index = task.id.partition("/")
        problem = self._problem(split, int(index))
        if problem.question != task.question:
            raise ValueError(
                f"demonstration: task: expected {problem.question!r} as {task.id}, "
                f"got {task.question!r}"
            )
        return problem

    def _solve(self, solver: Solver) -> list[Message]:
        messages: list[Message] = []
        result: str | None = None
        while True:
            try:
                call = next(solver) if result is None else solver.send(result)
            except StopIteration as stop:
                messages.append({"role": "assistant", "content": f"\\boxed{{{stop.value}}}"})
                return messages
            text = json.dumps({"name": call.name, "arguments": call.arguments})
            messages.append({"role": "assistant", "content": f"<tool_call>\n{text}\n</tool_call>"})
            tool = self._tools[call.name]
            _, observation = tool.call(tool.initial_state(), call.arguments)
            result = observation.text
            messages.append({"role": "tool", "content": result})


def _rng(*key: str | int) -> np.random.Generator:
    """Randomness that is a function of the key alone."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))


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
