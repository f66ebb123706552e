"""Formats of files of questions, as others publish them: each a row of `FORMATS`."""

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from elpo_jax.tasks import answers, benchmarks, code_tests, units
from elpo_jax.tasks.question import (
    CODE,
    LETTER,
    NUMBER,
    VERIFIERS,
    Question,
    code_question,
    gold_answer,
    kind_of,
)
from elpo_jax.tasks.rows import Row, check_unicode, field_of, shown, text_of

_CALCULATION = re.compile(r"<<([^<>=]+)=[^<>]*>>")
# DAPO-Math-17k's words on the form of the answer. The suites ask for it in a box, which these
# contradict.
_ANSWER_WORDS = (
    " The last line of your response should be of the form Answer: $Answer (without quotes) where "
    "$Answer is the answer to the problem.",
    '\n\nRemember to put your answer on its own line after "Answer:".',
)
_TOLERANCE = 0.01  # relative, of a number with a unit


@dataclass(frozen=True)
class Format:
    """A format of rows.

    Attributes:
      read: a row's question; raises ValueError, in one line, for one that can't be used.
      fits: whether a row's columns are those of the format.
    """

    read: Callable[[Row], Question]
    fits: Callable[[Row], bool]


def _questions(row: Row) -> Question:
    """The project's own: `question`, `verifier`, `answer` and, if wanted, `kind` and `tolerance`.

    The answer to a question for `code` is an object as in Open-AgentRL-30K, see `code_tests`.
    """
    verifier = field_of(row, "verifier")
    if verifier not in VERIFIERS:
        got = shown(verifier)
        raise ValueError(f"verifier: expected one of {', '.join(VERIFIERS)}, got {got}")
    kind, text = kind_of(verifier, row.get("kind")), text_of(row, "question")
    value = field_of(row, "answer")
    tolerance = row.get("tolerance")
    if tolerance is not None and verifier != NUMBER:
        raise ValueError(f"tolerance: expected none beside verifier {verifier!r}")
    if verifier == CODE:
        if not isinstance(value, Mapping):
            raise ValueError(f"answer: expected an object of tests, got {shown(value)}")
        return _code(kind, text, value, "answer")
    if verifier == LETTER:
        letter = answers.letter(value) if isinstance(value, str) else None
        if letter is None:
            raise ValueError(f"answer: expected a letter, got {shown(value)}")
        return Question(kind, text, letter, verifier=LETTER)
    gold = gold_answer(value, "answer")
    check_unicode("answer", gold)
    if verifier != NUMBER:
        return Question(kind, text, gold)
    right = answers.quantity(gold)
    if right is None or units.parse(right.spaced_unit) is None:
        raise ValueError(f"answer: expected a number, perhaps with a unit, got {shown(gold)}")
    return Question(kind, text, gold, verifier=NUMBER, tolerance=_checked_tolerance(tolerance))


def _checked_tolerance(value: Any) -> float:
    if value is None:
        return _TOLERANCE
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ValueError(
            f"tolerance: expected a number from 0 and below 1, got {shown(str(value))}"
        )
    return float(value)


def _gsm8k(row: Row) -> Question:
    """`question`, and `answer`: a solution with <<48/2=24>> at its calculations, then '#### 24'.

    https://github.com/openai/grade-school-math
    """
    question, worked = text_of(row, "question"), text_of(row, "answer")
    solution, marker, final = worked.rpartition("####")
    if not marker:
        raise ValueError("answer: expected #### and a number at its end, got no ####")
    number = answers.number(final)
    if number is None:
        raise ValueError(f"answer: expected a number after ####, got {shown(final.strip())}")
    calculations = tuple(part.strip() for part in _CALCULATION.findall(solution))
    return Question("gsm8k", question, f"{number:f}", calculations)


def _agentrl(row: Row) -> Question:
    """`prompt` [{role, content}], `reward_model` {ground_truth}, and for the kind `data_source` or
    `ability`: Open-AgentRL-30K and DAPO-Math-17k.

    https://huggingface.co/datasets/BytedTsinghua-SIA/DAPO-Math-17k
    """
    given = _prompt_text(field_of(row, "prompt"))
    text = given
    for words in _ANSWER_WORDS:
        text = text.replace(words, "")
    if not text.strip():
        raise ValueError("prompt: expected a question, got nothing beside the form of its answer")
    reward_model = field_of(row, "reward_model")
    if not isinstance(reward_model, Mapping) or "ground_truth" not in reward_model:
        raise ValueError(
            f"reward_model: expected an object with ground_truth, got {shown(reward_model)}"
        )
    kind = kind_of("agentrl", row.get("data_source"), row.get("ability"))
    return _by_form(kind, text, reward_model["ground_truth"], text != given)


def _prompt_text(prompt: Any) -> str:
    """The user messages, a system message before them: the system turn is the suite's."""
    if not isinstance(prompt, list):
        raise ValueError(f"prompt: expected a list of messages, got {shown(prompt)}")
    messages = [message if isinstance(message, Mapping) else {} for message in prompt]
    roles = [message.get("role") for message in messages]
    first = 1 if roles[:1] == ["system"] else 0
    if not roles[first:] or any(role != "user" for role in roles[first:]):
        got = ", ".join(map(shown, roles[:4])) + (", ..." if len(roles) > 4 else "")
        raise ValueError(
            f"prompt: expected user messages, after at most one of the system, got {got or 'none'}"
        )
    parts = []
    for number, message in enumerate(messages):
        where = f"prompt[{number}].content"
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"{where}: expected a text, got {shown(content)}")
        check_unicode(where, content)
        parts.append(content)
    return "\n\n".join(parts)


def _by_form(kind: str, text: str, truth: Any, is_cut: bool) -> Question:
    """Tests if the ground truth is an object of them, or JSON of one; a letter if it is one capital
    alone; else mathematics."""
    where = "reward_model.ground_truth"
    if isinstance(truth, str) and truth.lstrip()[:1] == "{":
        with contextlib.suppress(ValueError, RecursionError):  # {1, 2} is a set
            truth = json.loads(truth)
    if isinstance(truth, Mapping):
        return _code(kind, text, truth, where, is_cut)
    gold = gold_answer(truth, where)
    check_unicode(where, gold)
    if letter := answers.letter(gold):
        return Question(kind, text, letter, is_cut=is_cut, verifier=LETTER)
    return Question(kind, text, gold, is_cut=is_cut)


def _code(
    kind: str, text: str, truth: Mapping[str, Any], where: str, is_cut: bool = False
) -> Question:
    return code_question(kind, text, code_tests.from_ground_truth(truth, where), is_cut)


def _has(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(name in row for name in names)


def _is_gsm8k(row: Row) -> bool:
    return _has("question", "answer")(row) and "####" in str(row["answer"])


# In the order in which `auto` tries them: what fits several has the columns of the first.
_PUBLISHED: Mapping[str, Format] = {
    "questions": Format(_questions, _has("question", "verifier")),
    "agentrl": Format(_agentrl, _has("prompt", "reward_model")),
    "livecodebench": Format(benchmarks.livecodebench, _has("question_content")),
    "gsm8k": Format(_gsm8k, _is_gsm8k),
    "gpqa": Format(
        benchmarks.gpqa,
        lambda row: (
            _has(*benchmarks.GPQA_COLUMNS)(row) or _has("problem", "solution", "domain")(row)
        ),
    ),
    "math500": Format(benchmarks.math500, _has("problem", "answer", "subject")),
    "aime": Format(
        benchmarks.aime, lambda row: any(_has(*names)(row) for names in benchmarks.AIME_COLUMNS)
    ),
}


def _auto(row: Row) -> Question:
    """A row of whichever format has its columns."""
    for form in _PUBLISHED.values():
        if form.fits(row):
            return form.read(row)
    raise ValueError(
        f"expected the columns of {', '.join(_PUBLISHED)}, got {shown(', '.join(map(str, row)))}"
    )


FORMATS: Mapping[str, Format] = {**_PUBLISHED, "auto": Format(_auto, lambda row: True)}
