"""Tests of programs, and the forms in which files of questions hold them.

A program either reads standard input and prints, or defines a function that is called. Only values
that JSON has can be arguments and results, so that they cross into the sandbox and back as data.
"""

import ast
import base64
import binascii
import json
import keyword
import pickletools
import re
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from elpo_jax.tasks.rows import check_unicode, one_line, shown

MAX_UNPACKED = 1 << 29  # bytes of compressed tests, once they are unpacked
_ENTRY = re.compile(r"(?:Solution\(\)\.)?([A-Za-z_][A-Za-z0-9_]*)")
# What a pickled text is made of. Nothing here calls or imports.
_PICKLED_TEXT = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_PICKLED_FRAME = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"}


@dataclass(frozen=True)
class StdinTest:
    """What a program is given on standard input, and what it should print."""

    input: str
    output: str


@dataclass(frozen=True)
class CallTest:
    """A call, as JSON has its values, and the results that are right; any one of them will do."""

    arguments: Sequence[Any]
    named: Mapping[str, Any]
    results: Sequence[Any]


@dataclass(frozen=True)
class ProgramTests:
    """All tests of a question, of one sort.

    Attributes:
      stdin: tests of programs that read and print.
      calls: tests of a function.
      function: its name, or that of a method of the class Solution; '' without calls.
      prefix: source that the row puts before a function's.
      together: all calls are made in one run, one after another; else each in a run of its own.
    """

    stdin: tuple[StdinTest, ...] = ()
    calls: tuple[CallTest, ...] = ()
    function: str = ""
    prefix: str = ""
    together: bool = False

    def __len__(self) -> int:
        return len(self.stdin) + len(self.calls)


def pack(tests: ProgramTests) -> bytes:
    """Compressed JSON; the inverse of `unpack`. A question's tests may be a hundred megabytes."""
    return zlib.compress(json.dumps(asdict(tests)).encode(), level=1)


def unpack(packed: bytes) -> ProgramTests:
    """What `pack` was given."""
    return from_dict(json.loads(zlib.decompress(packed)))


def from_dict(fields: Mapping[str, Any]) -> ProgramTests:
    """The inverse of `dataclasses.asdict`."""
    fields = dict(fields)
    stdin = tuple(StdinTest(**test) for test in fields.pop("stdin"))
    calls = tuple(CallTest(**test) for test in fields.pop("calls"))
    return ProgramTests(stdin, calls, **fields)


def from_ground_truth(truth: Mapping[str, Any], where: str) -> ProgramTests:
    """Tests as Open-AgentRL-30K has them.

    {inputs, outputs, fn_name?}: texts for standard input and output, or with `fn_name` arguments
    and results. {import_prefix, test_code, entry_point}: asserts, see `from_asserts`.

    Args:
      truth: the ground truth.
      where: its name, for errors.

    Raises:
      ValueError: in one line, for anything else.
    """
    if "test_code" in truth:
        code, entry = truth["test_code"], truth.get("entry_point")
        return from_asserts(code, entry, truth.get("import_prefix") or "", where)
    inputs, outputs = truth.get("inputs"), truth.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise ValueError(
            f"{where}: expected lists of inputs and outputs, or test_code, "
            f"got {shown(', '.join(map(str, truth)))}"
        )
    if len(inputs) != len(outputs) or not inputs:
        raise ValueError(
            f"{where}: expected as many inputs as outputs, 1 or more, "
            f"got {len(inputs)} and {len(outputs)}"
        )
    name = truth.get("fn_name")
    if name is None:
        pairs = zip(map(_lines, inputs), map(_lines, outputs), strict=True)
        return _stdin_tests(list(pairs), where)
    pairs = zip(inputs, outputs, strict=True)
    calls = [
        CallTest(_arguments(given, f"{where}.inputs[{i}]"), {}, _results(expected))
        for i, (given, expected) in enumerate(pairs)
    ]
    return ProgramTests(calls=tuple(calls), function=_function(name, f"{where}.fn_name"))


def from_asserts(code: Any, entry: Any, prefix: Any, where: str) -> ProgramTests:
    """Tests whose asserts are read, not run.

    An assert that runs beside the program can be made to pass by it. Here `assert f(1) == 2`, in
    `check(candidate)` or outside a function, becomes the call f(1) and the result 2, which never
    meets the program. That needs plain values on both sides.

    Raises:
      ValueError: in one line, where an assert is anything else.
    """
    if not isinstance(code, str) or not isinstance(prefix, str):
        kinds = f"{type(code).__name__} and {type(prefix).__name__}"
        raise ValueError(f"{where}: expected texts as test_code and import_prefix, got {kinds}")
    check_unicode(f"{where}.import_prefix", prefix)
    function = _function(entry, f"{where}.entry_point")
    try:
        with warnings.catch_warnings():  # of escapes like "\d" in the row's texts
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where}.test_code: expected Python, got {one_line(error)}") from None
    calls = []
    for number, test in enumerate(_asserts(tree.body, where), 1):
        try:
            calls.append(_assert_call(test, {"candidate", function}))
        except (ValueError, RecursionError, MemoryError):
            source = shown(ast.get_source_segment(code, test) or "")
            raise ValueError(
                f"{where}.test_code: assert {number}: expected {function}(...) == VALUE of plain "
                f"values, got {source}"
            ) from None
    if not calls:
        raise ValueError(f"{where}.test_code: expected asserts, got none")
    return ProgramTests(calls=tuple(calls), function=function, prefix=prefix)


def from_livecodebench(public: Any, private: Any, function: Any) -> ProgramTests:
    """LiveCodeBench's tests, the public ones first.

    Args:
      public: JSON, or the list, of {input, output, testtype}.
      private: the same, or that in a pickled text in zlib in base64. It is never unpickled: the
        pickle must be one text and nothing else, and that is read without running it.
      function: the name of the function in the row's metadata; None for standard input.

    Raises:
      ValueError: in one line, for anything else.
    """
    tests = [*_test_list(public, "public_test_cases"), *_test_list(private, "private_test_cases")]
    if not tests:
        raise ValueError("private_test_cases: expected tests, got none")
    kinds = {test["testtype"] for test in tests}
    if kinds == {"stdin"}:
        return _stdin_tests([(test["input"], test["output"]) for test in tests], "test_cases")
    if kinds != {"functional"}:
        got = ", ".join(sorted(shown(kind) for kind in kinds))
        raise ValueError(
            f"testtype: expected stdin or functional, the same in all tests, got {got}"
        )
    calls = [
        CallTest(
            _arguments(test["input"], f"test_cases[{i}].input"),
            {},
            [_json(test["output"], f"test_cases[{i}].output")],
        )
        for i, test in enumerate(tests)
    ]
    return ProgramTests(calls=tuple(calls), function=_function(function, "metadata.func_name"))


def pickled_text(data: bytes) -> str:
    """The text that a pickle holds, found without running the pickle.

    Raises:
      ValueError: the pickle is broken, or does anything else than hold one text.
    """
    texts: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(data):
            if operation.name in _PICKLED_TEXT:
                texts.append(str(argument))
            elif operation.name not in _PICKLED_FRAME:
                raise ValueError(f"expected a pickled text, got the instruction {operation.name}")
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError(f"expected a pickle, got a fault: {one_line(error)}") from None
    if len(texts) != 1:
        raise ValueError(f"expected one pickled text, got {len(texts)}")
    return texts[0]


def _lines(value: Any) -> Any:
    """Some rows have a list of lines in place of the text."""
    is_lines = isinstance(value, list) and all(isinstance(line, str) for line in value)
    return "\n".join(value) if is_lines else value


def _stdin_tests(pairs: Sequence[tuple[Any, Any]], where: str) -> ProgramTests:
    for number, texts in enumerate(pairs):
        for name, text in zip(("input", "output"), texts, strict=True):
            place = f"{where}[{number}].{name}"
            if not isinstance(text, str):
                raise ValueError(f"{place}: expected a text, got {shown(text)}")
            check_unicode(place, text)
    return ProgramTests(stdin=tuple(StdinTest(*texts) for texts in pairs))


def _function(name: Any, where: str) -> str:
    match = _ENTRY.fullmatch(name) if isinstance(name, str) else None
    if match is None or keyword.iskeyword(match[1]):
        raise ValueError(f"{where}: expected the name of a function, got {shown(name)}")
    return match[1]


def _arguments(given: Any, where: str) -> list[Any]:
    """A list of arguments; or lines of JSON, one an argument."""
    if isinstance(given, list):
        return given
    if not isinstance(given, str):
        raise ValueError(f"{where}: expected arguments, got {shown(given)}")
    return [_json(line, where) for line in given.split("\n") if line.strip()]


def _results(expected: Any) -> list[Any]:
    """The result as it is, as JSON if it is that, and alone in a list where it is wrapped in one:
    rows do not say which."""
    if isinstance(expected, str):
        try:
            return [json.loads(expected), expected]
        except (ValueError, RecursionError):
            return [expected]
    is_wrapped = isinstance(expected, list) and len(expected) == 1
    return [expected, expected[0]] if is_wrapped else [expected]


def _json(text: Any, where: str) -> Any:
    if not isinstance(text, str):
        raise ValueError(f"{where}: expected JSON in a text, got {shown(text)}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: expected JSON, got {shown(text)}") from None


def _test_list(value: Any, where: str) -> list[Mapping[str, Any]]:
    if isinstance(value, str):
        text = value.strip()
        value = _json(text if text[:1] == "[" else _unpacked(text, where), where) if text else []
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list of tests, got {shown(value)}")
    for number, test in enumerate(value):
        fields = test if isinstance(test, Mapping) else {}
        if not all(isinstance(fields.get(name), str) for name in ("input", "output", "testtype")):
            raise ValueError(f"{where}[{number}]: expected texts input, output and testtype")
    return value


def _unpacked(text: str, where: str) -> str:
    """base64, then zlib, then a pickled text."""
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), MAX_UNPACKED)
        if not unpacker.eof:
            what = "fewer bytes" if unpacker.unconsumed_tail else "the end of the data"
            raise ValueError(f"expected {what}, got {len(data)} bytes")
        return pickled_text(data)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(f"{where}: as JSON or base64 of zlib: {one_line(error)}") from None


def _asserts(body: Sequence[ast.stmt], where: str) -> list[ast.Assert]:
    """Those of `check`, or outside of functions.

    Raises:
      ValueError: for a statement that may matter and isn't one.
    """
    found: list[ast.Assert] = []
    for statement in body:
        match statement:
            case ast.Assert():
                found.append(statement)
            case ast.FunctionDef(name="check", body=inner, decorator_list=[]):
                found += _asserts(inner, where)
            case ast.Pass() | ast.Import() | ast.ImportFrom():
                pass
            case ast.Expr(value=ast.Constant() | ast.Call(func=ast.Name(id="check"))):
                pass
            case ast.Assign(targets=[ast.Name(id="METADATA")]):  # HumanEval's
                pass
            case _:
                kind = type(statement).__name__
                raise ValueError(f"{where}.test_code: expected asserts alone, got {kind}")
    return found


def _assert_call(statement: ast.Assert, names: set[str]) -> CallTest:
    """Raises ValueError for anything but a call of one of the names that is compared."""
    match statement.test:
        case ast.Compare(left=left, ops=[ast.Eq() | ast.Is()], comparators=[right]):
            call, value = (left, right) if isinstance(left, ast.Call) else (right, left)
            result = _plain(ast.literal_eval(value), tuples=True)
        case ast.UnaryOp(op=ast.Not(), operand=call):
            result = False
        case call:
            result = True
    if (
        not isinstance(call, ast.Call)
        or ast.unparse(call.func).removeprefix("Solution().") not in names
    ):
        raise ValueError
    named = {
        str(pair.arg): _plain(ast.literal_eval(pair.value)) for pair in call.keywords if pair.arg
    }
    if len(named) < len(call.keywords):  # **kwargs
        raise ValueError
    return CallTest([_plain(ast.literal_eval(each)) for each in call.args], named, [result])


def _plain(value: Any, tuples: bool = False) -> Any:
    """A value that JSON gives back unchanged, but for tuples where they are allowed.

    Raises:
      ValueError: for another.
    """
    if isinstance(value, list) or (tuples and isinstance(value, tuple)):
        return [_plain(item, tuples) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, tuples) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError
