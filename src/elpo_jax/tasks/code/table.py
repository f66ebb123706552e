"""All programs, by the kind of task."""

from collections.abc import Mapping

from elpo_jax.tasks.code.algorithms import ALGORITHMS
from elpo_jax.tasks.code.arithmetic import ARITHMETIC
from elpo_jax.tasks.code.letters import LETTERS
from elpo_jax.tasks.code.lists import NUMBER_LISTS
from elpo_jax.tasks.code.program import Program
from elpo_jax.tasks.code.words import PAIRS, WORD_LISTS

PROGRAMS: Mapping[str, tuple[Program, ...]] = {
    "letters": LETTERS,
    "text_pairs": PAIRS,
    "word_lists": WORD_LISTS,
    "number_lists": NUMBER_LISTS,
    "algorithms": ALGORITHMS,
    "arithmetic": ARITHMETIC,
}
