"""Whether two mathematical answers are equivalent, by math-verify in a sandbox.

LaTeX can be made to compute for ever and to take all memory, and math-verify's own time-outs need
the main thread. So a pair is compared in a process that is killed. Nothing of the policy's runs
there: its answer is parsed, never evaluated as Python.
"""

import json
import re
from decimal import Decimal

from elpo_jax.sandbox import Limits, Sandbox, Snippet, Status
from elpo_jax.tasks import answers
from elpo_jax.tools.base import ToolFailure

MAX_ANSWER = 1000  # characters of an answer
SECONDS = 2.0  # of processor time; an answer that takes longer is wrong
_WALL_SECONDS = 20.0  # by the clock: a busy machine isn't the answer's fault
_STARVED = 0.8  # of `SECONDS`: a time-out with less use was the clock's
_CLOSE = Decimal("1e-6")  # relative: decimal numbers
_DOLLAR = re.compile(r"(?<!\\)\$")
_GROUPED = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:(?:\\[,!:; ]|\{,\}|~|\s)[0-9]{3})+(?![0-9])")
_NO_DIGIT = re.compile(r"[^0-9]")
_BESIDE = re.compile(r"[0-9](?:\\[,!:; ]|~|\s)+[0-9.]")

# The last is imported by sympy where an interval meets an inequality.
PRELOAD = ("sympy", "math_verify", "sympy.sets.handlers.functions")
_SCRIPT = """
import json, logging, sys
from math_verify import LatexExtractionConfig, parse, verify

def read(text):
    latex = [LatexExtractionConfig()]
    return parse("\\\\boxed{" + text + "}", extraction_config=latex, parsing_timeout=None)

logging.disable()
gold, answer = json.loads(sys.stdin.buffer.read())
try:
    is_right = verify(read(gold), read(answer), allow_set_relation_comp=True, timeout_seconds=None)
except (ImportError, OSError):  # not the answer's doing
    raise
except Exception:
    is_right = False
print("right" if is_right else "wrong")
"""


def is_equivalent(gold: str, answer: str, sandbox: Sandbox) -> bool:
    """Whether an answer is the right one in another notation.

    Equal texts are. Of two plain numbers whole ones must be equal and others agree to a millionth.
    All else is math-verify's to say; what it can't do in `SECONDS` is wrong. Nothing that it does
    waits, so that a run whose time by the clock is up before those are used is no verdict.

    Args:
      gold: the right answer, in LaTeX.
      answer: the inside of the policy's box.
      sandbox: with math_verify preloaded.

    Raises:
      ToolFailure: the sandbox broke, or math-verify isn't there, or got no processor.
    """
    gold, answer = _tidy(gold), _tidy(answer)
    if not answer or len(answer) > MAX_ANSWER:
        return False
    if gold == answer:
        return True
    numbers = plain_number(gold), plain_number(answer)
    if numbers[0] is not None and numbers[1] is not None:
        return _is_same_number(numbers[0], numbers[1])
    return _verify(gold, answer, sandbox)


def plain_number(text: str) -> Decimal | None:
    """A number alone, as `answers.number` reads it, digits perhaps in groups: '10\\,000'.

    None for anything else: also for a percentage, which may be meant as a fraction, and for numbers
    side by side.
    """
    text = _GROUPED.sub(lambda match: _NO_DIGIT.sub("", match[0]), text)
    return None if "%" in text or _BESIDE.search(text) else answers.number(text)


def _tidy(text: str) -> str:
    """Without dollar signs and a full stop at the end, both of which math-verify trips over."""
    text = _DOLLAR.sub("", text).strip()
    return text.removesuffix(".").rstrip() if not text.endswith("\\.") else text


def _is_same_number(gold: Decimal, answer: Decimal) -> bool:
    if gold == gold.to_integral_value():
        return gold == answer
    return abs(gold - answer) <= _CLOSE * abs(gold)


def _verify(gold: str, answer: str, sandbox: Sandbox) -> bool:
    given = json.dumps([gold, answer]).encode()
    snippet = Snippet((_SCRIPT,), stdin=given, echo=False)
    result = sandbox.run(snippet, Limits(cpu_seconds=SECONDS, wall_seconds=_WALL_SECONDS))
    if result.status is Status.OK and result.stdout in (b"right\n", b"wrong\n"):
        return result.stdout == b"right\n"
    if result.status is Status.TIMEOUT and result.cpu_seconds < _STARVED * SECONDS:
        used = f"{result.cpu_seconds:.2g} s of processor time in {result.wall_seconds:.3g} s"
        raise ToolFailure(f"math-verify: timeout: the machine is busy: {used}")
    if result.status in (Status.TIMEOUT, Status.MEMORY, Status.OUTPUT, Status.CRASHED):
        return False
    words = " ".join(result.stderr.decode(errors="replace").split())[-200:]
    raise ToolFailure(f"math-verify: {result.status}: {words}")
