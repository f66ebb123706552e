"""Python for the policy: `code_interpreter(code)`."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from elpo_jax.sandbox import Limits, Result, Sandbox, Snippet, Status
from elpo_jax.tools.base import Observation

Cells = tuple[str, ...]

_KILLED = (Status.TIMEOUT, Status.OUTPUT, Status.CRASHED)
_LAST_LINES = 1200  # characters of an error's text that are shown


class CodeInterpreter:
    """Runs code in a sandbox and answers with what it prints, and the value of its last expression.

    Each call starts afresh, or, in a session, where the calls before it left off. A session's state
    is the tuple of all cells so far: they are run again before the new one, with the seed of the
    first, so a branch stands exactly where its prefix stood, and equal calls give equal answers.
    One that was killed isn't kept: it would be killed again, and everything after it.
    What depends on the clock, on addresses or on the machine still differs.

    Args:
      sandbox: where code runs.
      session: keep variables from call to call.
    """

    name = "code_interpreter"

    def __init__(self, sandbox: Sandbox, session: bool = False):
        self._sandbox = sandbox
        self._session = session

    @property
    def schema(self) -> Mapping[str, Any]:
        keeps = "Variables stay." if self._session else "Nothing stays from call to call."
        return {
            "name": self.name,
            "description": f"Runs Python (numpy and sympy are there) and shows output. {keeps}",
            "parameters": {
                "type": "object",
                "properties": {"code": {"type": "string", "description": "Python source"}},
                "required": ["code"],
            },
        }

    def initial_state(self) -> Cells:
        return ()

    def call(self, state: Cells, arguments: Mapping[str, Any]) -> tuple[Cells, Observation]:
        """What the code printed; an error ('tool_error') where it didn't end well.

        Raises:
          ToolFailure: the sandbox broke.
        """
        cells = (*state, arguments["code"])
        seed = int.from_bytes(hashlib.sha256(cells[0].encode(errors="replace")).digest()[:4])
        limits = self._sandbox.limits
        # Those before take their CPU time again, each at most what it may.
        whole = replace(limits, cpu_seconds=limits.cpu_seconds * len(cells))
        result = self._sandbox.run(Snippet(cells, seed=seed), whole)
        observation = observed(result, whole)
        if result.status in _KILLED or result.left_early:
            cells = state
        return cells if self._session else (), observation


def observed(result: Result, limits: Limits) -> Observation:
    """What the policy reads of a result."""
    printed = _text(result.stdout)
    if result.status is Status.OK:
        warnings = _text(result.stderr)
        return Observation(_joined(printed, warnings) or "(no output)")
    return Observation(_joined(printed, _problem(result, limits)), "tool_error")


def _problem(result: Result, limits: Limits) -> str:
    """Why a snippet didn't end well, in a few lines."""
    lines = {
        Status.TIMEOUT: f"error: out of time ({_time(result, limits)})",
        Status.MEMORY: f"error: out of memory ({limits.memory_mb} MB)",
        Status.OUTPUT: f"error: more than {limits.output_bytes >> 10} KB of output",
        Status.CRASHED: "error: the interpreter crashed",
    }
    errors = _text(result.stderr)[-_LAST_LINES:]
    if result.status in lines:
        return lines[result.status]
    return errors or "error: ended with an exit status other than 0, or over its limits of files"


def _time(result: Result, limits: Limits) -> str:
    if result.cpu_seconds >= limits.cpu_seconds:
        return f"{limits.cpu_seconds:g} s of CPU time"
    return f"{limits.wall_seconds:g} s"


def _text(output: bytes) -> str:
    """UTF-8 with all else escaped, without the last line break."""
    return output.decode("utf-8", errors="backslashreplace").rstrip("\n")


def _joined(*parts: str) -> str:
    return "\n".join(part for part in parts if part)
