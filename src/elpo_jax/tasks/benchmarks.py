"""Rows of published benchmarks: MATH-500, AIME, GPQA-Diamond, LiveCodeBench."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from elpo_jax.tasks import answers, code_tests
from elpo_jax.tasks.question import LETTER, Question, code_question, gold_answer, kind_of
from elpo_jax.tasks.rows import Row, field_of, shown, text_of

_WRONG = tuple(f"Incorrect Answer {number}" for number in (1, 2, 3))
GPQA_COLUMNS = ("Question", "Correct Answer", *_WRONG)


def math500(row: Row) -> Question:
    """`problem`, `answer`, `subject`.

    https://huggingface.co/datasets/HuggingFaceH4/MATH-500
    """
    answer = gold_answer(field_of(row, "answer"), "answer")
    return Question(kind_of("math500", row.get("subject")), text_of(row, "problem"), answer)


def aime(row: Row) -> Question:
    """`Problem` and `Answer`, `problem` and `answer`, or `question` and `answer`.

    https://huggingface.co/datasets/Maxwell-Jia/AIME_2024
    """
    names = next((names for names in AIME_COLUMNS if names[0] in row), AIME_COLUMNS[0])
    answer = gold_answer(field_of(row, names[1]), names[1])
    return Question("aime", text_of(row, names[0]), answer)


AIME_COLUMNS = (("Problem", "Answer"), ("problem", "answer"), ("question", "answer"))


def gpqa(row: Row) -> Question:
    """`Question`, `Correct Answer` and `Incorrect Answer 1` to 3, which are put in an order that is
    a function of the question; or `problem` with the options in it, and `solution` with a letter,
    perhaps in a box.

    https://huggingface.co/datasets/Idavidrein/gpqa
    """
    if "Question" not in row:
        solution = text_of(row, "solution")
        letter = answers.letter(solution) or answers.final_letter(solution)
        if letter is None:
            raise ValueError(f"solution: expected the letter of an option, got {shown(solution)}")
        kind = kind_of("gpqa", row.get("domain"))
        return Question(kind, text_of(row, "problem"), letter, verifier=LETTER)
    question, *options = (text_of(row, name).strip() for name in GPQA_COLUMNS)
    if len(set(options)) < len(options):
        raise ValueError("Incorrect Answer: expected options that differ from each other")
    seed = hashlib.sha256(question.encode()).digest()[:16]
    order = np.random.default_rng(int.from_bytes(seed)).permutation(len(options))
    lines = [f"{'ABCD'[place]}. {options[option]}" for place, option in enumerate(order)]
    letter = "ABCD"[list(order).index(0)]
    text = "\n".join([question, "", *lines])
    kind = kind_of("gpqa", row.get("High-level domain"), row.get("Subdomain"))
    return Question(kind, text, letter, verifier=LETTER)


def livecodebench(row: Row) -> Question:
    """`question_content`, `starter_code`, `public_test_cases`, `private_test_cases` and the name of
    the function in `metadata`, where the tests call one.

    https://huggingface.co/datasets/livecodebench/code_generation_lite
    """
    text = text_of(row, "question_content")
    function = _metadata(row.get("metadata")).get("func_name")
    tests = code_tests.from_livecodebench(
        field_of(row, "public_test_cases"), field_of(row, "private_test_cases"), function
    )
    starter = row.get("starter_code")
    if isinstance(starter, str) and starter.strip():
        text = f"{text}\n\n```python\n{text_of(row, 'starter_code').rstrip()}\n```"
    kind = kind_of("livecodebench", row.get("difficulty"))
    return code_question(kind, text, tests)


def _metadata(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"metadata: expected JSON, got {shown(value)}") from None
    return value if isinstance(value, Mapping) else {}
