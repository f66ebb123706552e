"""Runs the cells of a snippet, as a notebook would. The last thing that a child does."""

import ast
import atexit
import builtins
import contextlib
import gc
import io
import linecache
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import Any

_STREAMS = (sys.stdout, sys.stderr)  # which a snippet may keep when it puts others there
_FILE = io.IOBase.__mro__[1]  # which the classes written in C have in common
_join_threads = threading._shutdown  # type: ignore[attr-defined]
_run_exit_handlers = atexit._run_exitfuncs
# Nobody else ends a process so by chance: who does otherwise has left in the middle of a cell.
EXIT_OK, EXIT_ERROR, EXIT_MEMORY = 91, 92, 93


def run(cells: Sequence[str], echo: bool) -> int:
    """Runs all cells and returns the exit status.

    The output of all but the last is dropped and their exceptions pass.

    Args:
      cells: sources.
      echo: print the value of the last cell's last expression.
    """
    main = ModuleType("__main__")  # where pickle and dataclasses look for a snippet's classes
    sys.modules["__main__"] = main
    namespace = main.__dict__
    namespace["__builtins__"] = builtins
    signal.signal(signal.SIGXCPU, _out_of_time)
    for number, cell in enumerate(cells[:-1], 1):
        with _muted():
            _run_cell(cell, f"<cell {number}>", namespace, echo=False)
    status = _run_cell(cells[-1], f"<cell {len(cells)}>", namespace, echo)
    _finish()
    return status if _flush() else EXIT_ERROR


def _finish() -> None:
    """What the interpreter does at its end: threads, exit handlers, files that are still open."""
    with contextlib.suppress(BaseException):
        _join_threads()
    with contextlib.suppress(BaseException):
        _run_exit_handlers()
    with contextlib.suppress(BaseException):
        for each in gc.get_objects():  # without the zygote's own, which are frozen
            if issubclass(type(each), _FILE):
                with contextlib.suppress(BaseException):
                    each.flush()


def _out_of_time(number: int, frame: FrameType | None) -> None:
    """Ends the process, but lets what was printed so far out. Killed if it doesn't get to it."""
    _flush()
    os._exit(EXIT_ERROR)


def _run_cell(source: str, name: str, namespace: dict[str, Any], echo: bool) -> int:
    try:
        body, last = _compile(source, name, echo)
        exec(body, namespace)
        if last is not None:
            value = eval(last, namespace)
            if value is not None:
                namespace["_"] = value
                print(repr(value))
    except SystemExit as leaving:
        if leaving.code is None or leaving.code == 0:
            return EXIT_OK
        if not isinstance(leaving.code, int):
            print(leaving.code, file=sys.stderr)
        return EXIT_ERROR
    except MemoryError:
        sys.stderr.write("MemoryError\n")
        return EXIT_MEMORY
    except BaseException as error:
        _tell(error)
        return EXIT_ERROR
    return EXIT_OK


def _compile(source: str, name: str, echo: bool) -> tuple[CodeType, CodeType | None]:
    """The code of a cell, and of its last expression if that is to be shown."""
    # As `ast.parse` does it, whose frame would be in the traceback.
    tree: Any = compile(source, name, "exec", flags=ast.PyCF_ONLY_AST)
    # For tracebacks that show the lines.
    lines = source.splitlines(keepends=True)
    linecache.cache[name] = (len(source), None, lines, name)
    last = None
    if echo and tree.body and isinstance(tree.body[-1], ast.Expr):
        last = compile(ast.Expression(tree.body.pop().value), name, "eval")
    return compile(tree, name, "exec"), last


def _tell(error: BaseException) -> None:
    """Prints a traceback without the frames of this module."""
    try:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        _print(error, frames)
    except BaseException:  # the snippet may have broken whatever is used here
        with contextlib.suppress(BaseException):
            os.write(2, f"{type(error).__name__}\n".encode(errors="replace"))


def _print(error: BaseException, frames: TracebackType | None) -> None:
    traceback.print_exception(type(error), error, frames, limit=-8, file=sys.stderr)


@contextlib.contextmanager
def _muted() -> Any:
    """Drops what is written meanwhile, also by file descriptor."""
    _flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number, _ in kept:
        os.dup2(nowhere, number)
    os.close(nowhere)
    try:
        yield
    finally:
        _flush()
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)


def _flush() -> bool:
    """Whether what was printed could be written."""
    is_written = True
    for stream in (sys.stdout, sys.stderr, *_STREAMS):
        try:
            stream.flush()
        except BaseException:
            is_written = False
    return is_written
