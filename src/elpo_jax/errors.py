"""What is said to the user when something can't be used, or broke."""

import difflib
import re
from collections.abc import Iterable


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


def os_problem(error: OSError, where: object = "") -> str:
    """'PATH: No space left on device'; `where` stands in for a path that the error doesn't know."""
    return f"{error.filename or where}: {error.strerror or error}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """'; did you mean NAME?' for the nearest known name, or nothing if none is near.

    A dotted key is also found by its last part alone, and by the initials of that: 'lr'.
    """
    known = list(known)
    by_last = {key.rpartition(".")[2]: key for key in reversed(known)}
    by_initials = {"".join(re.findall(r"\b[a-z]|(?<=_)[a-z]", k)): by_last[k] for k in by_last}
    given = name.rpartition(".")[2]
    near = [by_initials[given]] if len(given) > 1 and given in by_initials else []
    near += difflib.get_close_matches(name, known, 1, 0.6)
    near += [by_last[match] for match in difflib.get_close_matches(given, by_last, 1, 0.6)]
    return f"; did you mean {near[0]}?" if near else ""


def unknown_name(where: str, got: str, known: Iterable[str]) -> str:
    """The line for a name that isn't in a table of names."""
    known = sorted(known)
    expected = ", ".join(map(repr, known))
    return f"{where}: expected one of {expected}, got {got!r}{suggestion(got, known)}"
