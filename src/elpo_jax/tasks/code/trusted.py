"""Runs the table's own programs in this process: tens of thousands of them make a cold start.

Only for sources that the suite wrote itself. What a policy writes goes to the sandbox. The texts
are those that the code interpreter gives for the same source, which a test compares.
"""

import ast
import copy
import io
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any

FAILED = object()  # in place of a value, where a slip makes a function raise


def call(source: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
    """What `f` of a source returns for each list of arguments; FAILED where it raises."""
    namespace: dict[str, Any] = {}
    exec(_compiled(source)[0], namespace)
    return [_result(namespace["f"], each) for each in arguments]


def printed(source: str, stdin: str = "") -> str:
    """What a source prints that reads lines.

    As in a notebook, a last line that is an expression is printed too, if it isn't None.
    """
    output = io.StringIO()
    lines: Iterator[str] = iter(stdin.split("\n"))

    def show(*values: Any) -> None:
        print(*values, file=output)

    namespace: dict[str, Any] = {"input": lambda: next(lines), "print": show}
    statements, expression = _compiled(source)
    exec(statements, namespace)
    if expression is not None:
        value = eval(expression, namespace)
        if value is not None:
            show(repr(value))
    return output.getvalue()


def _result(function: Any, arguments: Sequence[Any]) -> Any:
    try:
        return function(*copy.deepcopy(list(arguments)))
    except Exception:  # a slip may do anything
        return FAILED


@lru_cache(maxsize=1024)
def _compiled(source: str) -> tuple[CodeType, CodeType | None]:
    """The statements, and the last line if it is an expression."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        return compile(tree, "<program>", "exec"), None
    del tree.body[-1]
    expression = ast.Expression(last.value)
    return compile(tree, "<program>", "exec"), compile(expression, "<program>", "eval")
