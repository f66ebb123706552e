"""Trains an embedded tokenizer: `python -m elpo_jax.policy.train_tokenizer NAME OUT`, where NAME is
science, search (for the science suite with a corpus) or code.

A policy of a million parameters pays for each token, and learns to copy only what is always cut the
same way. So the vocabulary has
  - atoms, glued to nothing: digits and the end of a turn; for the science suite element symbols and
    the signs in expressions, for the code suite the words and letters that programs are tried on;
  - phrases: what stands between the atoms in the suite's training conversations, up to 64
    characters, so that a call takes one piece from `<tool_call>` to its first argument;
  - BPE pieces for what is left, and bytes for every other text.
SentencePiece matches atoms and phrases first, the longest at each place.
"""

import io
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from elpo_jax.config import SandboxConfig
from elpo_jax.policy.chat import EMBEDDED_TEMPLATE, Chat
from elpo_jax.policy.tokenizer import CONTROL
from elpo_jax.sandbox import Sandbox
from elpo_jax.tasks.base import TRAIN, Suite
from elpo_jax.tasks.code.inputs import QUOTED, WORDS
from elpo_jax.tasks.code.suite import CodeSuite
from elpo_jax.tasks.science.elements import elements
from elpo_jax.tasks.science.suite import LENGTHS, ScienceSuite

TASKS = 2000  # conversations of each suite
MAX_PHRASE = 64  # characters
MAX_MERGED = 16  # characters of a BPE piece

_SPACE = "\u2581"  # what SentencePiece writes for a space
_END_OF_TURN = "<|im_end|>"
_SINGLE = "0123456789.+-*/()"
_DIGIT = r"\d"
_NUMBER = r"[-+*/().]*\d(?:[-+*/().\d]|e(?=-?\d))*"
# Phrases begin and end between these, so never inside a control string.
_CHUNK = re.compile(rf"{'|'.join(map(re.escape, CONTROL))}|\s+|\w+|[^\s\w]")


class _Recorder:
    """A tokenizer that only counts the texts it is asked to encode.

    All that is one token to it is the end of a turn, which a chat template has to end turns with.
    """

    vocab_size = 0

    def __init__(self) -> None:
        self.texts: Counter[str] = Counter()

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        self.texts[text] += 1
        return [0] if allow_special and text.startswith(_END_OF_TURN) else []

    def decode(self, ids: Sequence[int]) -> str:
        return _END_OF_TURN * len(ids)

    def id_of(self, piece: str) -> int:
        return 0


def collect(suite: Suite, template: str, tasks: int) -> Counter[str]:
    """The texts that are encoded on their own in a suite's training conversations, counted."""
    recorder = _Recorder()
    chat = Chat(recorder, template, [tool.schema for tool in suite.tools])
    around_tool = Counter(chat.around_tool)
    recorder.texts = around_tool.copy()  # not the probes that it made besides
    for index in range(tasks):
        task = suite.task(TRAIN, index)
        turns = suite.demonstration(task)
        system = {"role": "system", "content": suite.system_prompt}
        chat.demonstration([system, {"role": "user", "content": task.question}, *turns])
        for _ in range(len(turns) // 2):
            recorder.texts += around_tool
    return recorder.texts


@dataclass(frozen=True)
class Recipe:
    """What a tokenizer is made of, besides texts.

    Attributes:
      symbols: atoms besides digits and control strings.
      between: what phrases stand between, as regular expressions.
      vocab_size: pieces in all; a multiple of 64, so that it can be sharded.
      phrases: how many of them are phrases, at most.
    """

    symbols: Sequence[str]
    between: Sequence[str]
    vocab_size: int
    phrases: int


def train(texts: Counter[str], recipe: Recipe) -> bytes:
    """A SentencePiece model; the same bytes for the same arguments.

    Args:
      texts: what is encoded on its own, with how often it occurs.
      recipe: the rest.

    Raises:
      ValueError: when SentencePiece can't make a vocabulary of that size.
    """
    vocab_size = recipe.vocab_size
    if vocab_size % 64:
        raise ValueError(f"vocab_size: expected a multiple of 64, got {vocab_size}")
    chosen, leftovers = _choose_phrases(_cut(texts, recipe.between), recipe.phrases)
    defined = list(dict.fromkeys([*CONTROL, "\n", *recipe.symbols, *chosen]))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(run for run, n in sorted(leftovers.items()) for _ in range(n)),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            user_defined_symbols=[piece.replace(" ", _SPACE) for piece in defined],
            required_chars=_SINGLE,
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            split_by_whitespace=False,
            max_sentencepiece_length=MAX_MERGED,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_surface="\ufffd",
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"vocab_size {vocab_size} with {len(defined)} atoms and phrases: {error}"
        ) from error
    return model.getvalue()


def _cut(texts: Counter[str], between: Sequence[str]) -> Counter[str]:
    """What stands between the ends of turns and the atoms."""
    atom = re.compile("|".join([re.escape(_END_OF_TURN), *between]))
    runs: Counter[str] = Counter()
    for text, count in texts.items():
        for run in atom.split(text):
            if run:
                runs[run] += count
    return runs


def _choose_phrases(runs: Counter[str], number: int) -> tuple[list[str], Counter[str]]:
    """Greedily, the phrases that stand for most characters; and what they leave of the runs."""
    runs = runs.copy()
    chosen: list[str] = []
    counts: Counter[str] = Counter()
    for run, count in runs.items():
        _count(counts, run, count)
    while len(chosen) < number and counts:
        best = max(counts, key=lambda phrase: (counts[phrase] * (len(phrase) - 1), phrase))
        if counts[best] * (len(best) - 1) <= 0:
            break
        chosen.append(best)
        for run in [run for run in runs if best in run]:
            count = runs.pop(run)
            _count(counts, run, -count)
            for part in filter(None, run.split(best)):
                runs[part] += count
                _count(counts, part, count)
    return chosen, runs


def _count(counts: Counter[str], run: str, weight: int) -> None:
    """Adds every phrase in a run to the counts, `weight` times."""
    edges = [0, *(match.end() for match in _CHUNK.finditer(run))]
    for i, start in enumerate(edges):
        for end in edges[i + 1 :]:
            if end - start > MAX_PHRASE:
                break
            counts[run[start:end]] += weight


def science_recipe(symbols: Sequence[str]) -> Recipe:
    """Phrases between formulas, numbers and lone capitals."""
    formula = rf"(?<![A-Za-z])(?:{_longest_first(symbols)}|[0-9()])+(?![a-z])"
    return Recipe(symbols, (formula, _NUMBER, r"\b[A-Z]\b"), vocab_size=512, phrases=72)


def code_recipe() -> Recipe:
    """Phrases between digits, and the words and quoted letters that programs are about."""
    between = (_DIGIT, rf"\b(?:{_longest_first(WORDS)})\b", _longest_first(QUOTED))
    return Recipe((*WORDS, *QUOTED), between, vocab_size=768, phrases=96)


def _longest_first(texts: Sequence[str]) -> str:
    return "|".join(sorted(map(re.escape, texts), key=len, reverse=True))


def _science() -> tuple[list[Suite], Recipe]:
    suites: list[Suite] = [ScienceSuite(length) for length in LENGTHS]
    return suites, science_recipe([element.symbol for element in elements()])


def _search() -> tuple[list[Suite], Recipe]:
    suites: list[Suite] = [ScienceSuite(length, search=True) for length in LENGTHS]
    return suites, science_recipe([element.symbol for element in elements()])


def _code() -> tuple[list[Suite], Recipe]:
    return [CodeSuite("short", Sandbox(SandboxConfig()))], code_recipe()


TOKENIZERS: Mapping[str, Callable[[], tuple[list[Suite], Recipe]]] = {
    "science": _science,
    "search": _search,
    "code": _code,
}


def main(argv: Sequence[str]) -> None:
    """Writes the model of that name to the path given."""
    if len(argv) != 3 or argv[1] not in TOKENIZERS:
        command = f"python -m elpo_jax.policy.train_tokenizer {'|'.join(TOKENIZERS)} OUT"
        raise SystemExit(f"usage: {command}, got {argv[1:]}")
    suites, recipe = TOKENIZERS[argv[1]]()
    template = EMBEDDED_TEMPLATE.read_text(encoding="utf-8")
    texts: Counter[str] = Counter()
    for suite in suites:
        texts += collect(suite, template, TASKS)
    Path(argv[2]).write_bytes(train(texts, recipe))


if __name__ == "__main__":
    main(sys.argv)
