"""Numbers as text, for pages and sentences."""

import math
from typing import Any

from elpo_jax.metrics import wilson

NOTHING = "\N{EN DASH}"
TESTS = 3  # of an answer that are shown
MAX_TEXT = 8_000  # characters of one turn or output on a page


def percent(value: float, digits: int = 1) -> str:
    """'50.8%'."""
    return f"{100 * value:.{digits}f}%"


def points(value: float) -> str:
    """A difference of shares in percentage points: '+29.3'."""
    return signed(100 * value, 1)


def signed(value: float | None, digits: int = 2) -> str:
    """'+0.38' or '-0.38' with a real minus sign; a dash for nothing."""
    if value is None:
        return NOTHING
    rounded = round(value, digits) + 0.0  # no -0.00
    return f"{rounded:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def number(value: float | None) -> str:
    """Four significant digits, thousands apart: '1,235', '0.01563', '4.2e-14'."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e15 or size < 1e-4:
        text = f"{value:.3g}"
    elif size >= 1000 or float(value).is_integer():
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{max(0, 3 - math.floor(math.log10(size)))}f}".rstrip("0").rstrip(".")
    return text.replace("-", "\N{MINUS SIGN}") if value < 0 else text


def interval(successes: int, trials: int) -> str:
    """Wilson's 95 % interval of a share: '44.7 to 56.9'."""
    low, high = wilson(successes, trials)
    return f"{100 * low:.1f} to {100 * high:.1f}"


def clip(text: str, limit: int = MAX_TEXT) -> str:
    """The text, its middle cut out where it is longer than `limit`."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - 2 * half:,} characters cut]\n{text[-half:]}"


def short(text: str, limit: int) -> str:
    """The text on one line, at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def last_line(text: str) -> str:
    """The last line that isn't empty: of a traceback what was raised."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def answer(value: Any) -> str:
    """A task's answer as its suite stores it, without what only tells how to compare it."""
    if not isinstance(value, dict):
        return str(value)
    tests = [
        each
        for part in value.values()
        if isinstance(part, list)
        for each in part
        if isinstance(each, dict)
    ]
    if tests:
        named = [_test(test) for test in tests[:TESTS]] + ["…"] * (len(tests) > TESTS)
        return f"{len(tests)} test{'s' if len(tests) > 1 else ''}: {'; '.join(named)}"
    parts = []
    for name, part in value.items():
        if name in ("type", "rtol"):
            continue
        if isinstance(part, list):
            parts.append(" or ".join(map(str, part)))
        elif type(part) is float:
            parts.append(f"{part:.5g}")
        else:
            parts.append(str(part))
    return " ".join(parts)


def _test(test: dict[str, Any]) -> str:
    """A test of a program as 'what goes in → what comes out'."""
    results = test.get("results")
    given = test.get("input", test.get("arguments"))
    if isinstance(given, list):
        given = ", ".join(map(repr, given))
    elif given is not None:
        given = repr(given)
    wanted = " or ".join(map(repr, results)) if isinstance(results, list) else test.get("output")
    if given is None or wanted is None:
        return str(test)
    return f"{given} → {wanted if isinstance(results, list) else repr(wanted)}"
