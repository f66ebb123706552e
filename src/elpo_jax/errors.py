"""What is said to the user when something can't be used, or broke."""

import difflib
from collections.abc import Iterable

_LESS_MEMORY = (
    "`python -m elpo_jax.plan` with the same settings says what takes it; fewer sampler.rows, "
    "sampler.lanes and train.micro_batch_rows, a shorter episode.max_length and policy.remat=full "
    "take less"
)


class UsageError(ValueError):
    """What the user gave can't be used.

    Attributes:
      problems: one line each: where, what was expected, what came.
    """

    def __init__(self, problems: Iterable[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class RunFault(Exception):
    """Something broke that is neither the user's words nor the program: a disk, a file, a tool, a
    number. What was saved before stands.

    Attributes:
      problems: one line each: where, what happened, what to do.
    """

    def __init__(self, problems: Iterable[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class ToolFault(RunFault):
    """Tools or verifiers broke so often that nothing is left to go on with."""


def os_problem(error: OSError, where: object = "") -> str:
    """'PATH: No space left on device'; `where` stands in for a path that the error doesn't know."""
    return f"{error.filename or where}: {error.strerror or error}"


def memory_problem(error: BaseException) -> str | None:
    """'out of memory (WORDS); WHAT TO DO' where that is the error, on a device or the host."""
    # JAX's error is a RuntimeError that begins with the name of its status.
    is_devices = isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    if not is_devices and not isinstance(error, MemoryError):
        return None
    words = " ".join(str(error).split())[:200]
    return f"out of memory ({words or type(error).__name__}); {_LESS_MEMORY}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """'; did you mean NAME?' for the nearest known name, or nothing if none is near.

    A dotted key is also found by its last part alone, and by the initials of that ('lr'), those of
    the same section first.
    """
    known = list(known)
    by_last = {key.rpartition(".")[2]: key for key in reversed(known)}
    section, _, given = name.rpartition(".")
    near = [key for key in known if len(given) > 1 and _initials(key) == given]
    near.sort(key=lambda key: key.rpartition(".")[0] != section)
    near += difflib.get_close_matches(name, known, 1, 0.6)
    near += [by_last[match] for match in difflib.get_close_matches(given, by_last, 1, 0.6)]
    return f"; did you mean {near[0]}?" if near else ""


def _initials(key: str) -> str:
    return "".join(word[:1] for word in key.rpartition(".")[2].split("_"))


def unknown_name(where: str, got: str, known: Iterable[str]) -> str:
    """The line for a name that isn't in a table of names."""
    known = sorted(known)
    expected = ", ".join(map(repr, known))
    return f"{where}: expected one of {expected}, got {got!r}{suggestion(got, known)}"
