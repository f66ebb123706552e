"""Verifiers of questions from files: functions from a question and a response to a verdict."""

import hashlib

from elpo_jax.sandbox import Sandbox
from elpo_jax.tasks import answers, units
from elpo_jax.tasks.base import Verdict
from elpo_jax.tasks.code_judge import judge
from elpo_jax.tasks.code_tests import unpack
from elpo_jax.tasks.math_judge import MAX_ANSWER, is_equivalent, plain_number
from elpo_jax.tasks.question import CODE, LETTER, NUMBER, Question
from elpo_jax.tools.calculator import format_number

_VOTE_DIGITS = 3  # answers with units that agree so far are one answer in a majority vote


class Verifiers:
    """Judges responses to questions, by each question's own verifier.

    Args:
      programs: where the policy's programs run.
      mathematics: where math-verify runs; it has math_verify preloaded.
      fail_fast: a program's tests end with the first that fails, and no verdict tells a fraction.
    """

    def __init__(self, programs: Sandbox, mathematics: Sandbox, fail_fast: bool):
        self._programs = programs
        self._mathematics = mathematics
        self._fail_fast = fail_fast

    def verify(self, question: Question, response: str) -> Verdict:
        """The verdict on a response.

        Raises:
          ToolFailure: a sandbox broke; there is no verdict then.
        """
        if question.verifier == CODE:
            return self._program(question, response)
        if question.verifier == LETTER:
            found = answers.final_letter(response)
            return Verdict(found == question.answer, found)
        if question.verifier == NUMBER:
            return _number(question, response)
        inside = answers.boxed(response, MAX_ANSWER)
        if not inside:
            return Verdict(False, None)
        success = is_equivalent(question.answer, inside, self._mathematics)
        number = plain_number(inside)
        vote = answers.plain(inside) if number is None else format(number.normalize(), "f")
        return Verdict(success, vote)

    def _program(self, question: Question, response: str) -> Verdict:
        program = answers.last_program(response)
        if program is None:
            return Verdict(False, None)
        tests, seconds = unpack(question.tests), self._programs.config.tests_seconds
        judgement = judge(self._programs, program, tests, self._fail_fast, seconds)
        passed = None if self._fail_fast else judgement.score
        # Equal programs are one answer in a majority vote.
        name = hashlib.sha256(program.encode(errors="replace")).hexdigest()[:8]
        vote = f"program {name}: {judgement.passed} of {judgement.total} tests"
        return Verdict(judgement.success, vote, passed)


def _number(question: Question, response: str) -> Verdict:
    """A number in the unit of the right answer, or without one, within the tolerance.

    Without one it may also be the share that a percentage says: 0.5 for 50%.
    """
    inside = answers.boxed(response)
    if inside is None:
        return Verdict(False, None)
    found, gold = answers.quantity(inside), answers.quantity(question.answer)
    if found is None or gold is None:
        return Verdict(False, inside)
    unit_fits = answers.has_unit_of(found, gold)
    values = [found.value]
    if not found.unit and units.parse(gold.spaced_unit) == units.PERCENT:
        values.append(100 * found.value)
    is_close = any(
        abs(value - gold.value) <= question.tolerance * abs(gold.value) for value in values
    )
    vote = format_number(found.value, _VOTE_DIGITS)
    return Verdict(unit_fits and is_close, vote if unit_fits else f"{vote} {found.unit}")
