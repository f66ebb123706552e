"""The command line of the entry points.

`--config experiments/NAME.py[:variant]` names a file that defines `get_config(variant="")`, which
returns an edited `elpo_jax.config.default_config()`; `--config.a.b=value` sets one key after that.
Every key is an absl flag, so `--help` lists them. Whatever goes wrong ends in a line on stderr, and
an exit status that `run` explains.
"""

import logging
import re
import signal
import sys
import traceback
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from elpo_jax.config import Config, field_types, get, read, unknown_key
from elpo_jax.errors import RunFault, UsageError, memory_problem, os_problem, suggestion
from elpo_jax.validation import validate

_KEY = "config."


class Option(NamedTuple):
    """A flag of an entry point besides `--config`; its value is a string."""

    name: str
    help: str
    default: str | None = None  # None: the flag must be given


def parse(
    argv: Sequence[str],
    options: Sequence[Option],
    known: Mapping[str, Collection[str]] | None = None,
    unread: Collection[str] = (),
) -> tuple[Config, dict[str, str]]:
    """Reads a command line.

    Args:
      argv: the program's name and its arguments.
      options: what the entry point takes besides the config.
      known: names that config values may have, by key (see `validation.validate`).
      unread: keys that the entry point doesn't read.

    Returns:
      The validated config, and the options' values by name.

    Raises:
      UsageError: with every problem that could be found.
      SystemExit: after printing the help, if `--help` was given.
    """
    required = [Option("config", "the experiment: FILE.py[:variant]"), *options]
    values = _flags(required, field_types())
    _read(argv, values, required, _help(argv[0], required))
    tree = load_experiment(str(values["config"].value)).to_dict()
    for key, kind in field_types().items():
        if values[_KEY + key].present:
            _set(tree, key, _literal(str(values[_KEY + key].value), kind))
    config, problems = read(tree)
    validate(config, known, problems, unread)
    return config, {option.name: values[option.name].value or "" for option in options}


def parse_options(argv: Sequence[str], options: Sequence[Option]) -> dict[str, str]:
    """Reads the command line of an entry point that takes no config; raises as `parse` does."""
    values = _flags(options, {})
    _read(argv, values, options, _usage(argv[0], options))
    return {option.name: values[option.name].value or "" for option in options}


def load_experiment(spec: str) -> ConfigDict:
    """What `get_config` of `FILE.py[:variant]` returns.

    Raises:
      UsageError: naming the file, and the line where it failed.
    """
    name, _, variant = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        others = sorted(str(file) for file in path.parent.glob("*.py"))
        raise UsageError([f"--config: no such file: {name}{suggestion(name, others)}"])
    scope: dict[str, Any] = {"__name__": "experiment", "__file__": name}
    try:
        exec(compile(path.read_text(encoding="utf-8"), name, "exec"), scope)
        if not callable(scope.get("get_config")):
            raise UsageError([f"{name}: expected a function get_config(variant), found none"])
        config = scope["get_config"](variant)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError([f"{_place(error, name)}: {_reason(error)}"]) from error
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UsageError([f"{name}: get_config: expected a ConfigDict, got {kind}"])
    return config


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Runs an entry point and ends the process.

    The exit status is 0 when all is done, 2 for what can't be used as it was given, 3 for what
    broke (`RunFault`, an error of the disk, memory that is out), 128 + n when signal n ended it. A
    traceback, with status 1, is a bug of this package.
    """
    _quiet_libraries()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # of `elpo_jax`, while all is imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main(sys.argv)
    except UsageError as error:
        _exit(2, error.problems)
    except RunFault as error:
        _exit(3, error.problems)
    except OSError as error:
        _exit(3, [os_problem(error)])
    except (MemoryError, RuntimeError) as error:
        problem = memory_problem(error)
        if problem is None:
            raise
        _exit(3, [f"{Path(sys.argv[0]).stem}: {problem}"])
    except KeyboardInterrupt:
        _exit(130, ["interrupted"])
    sys.exit(0)


def _quiet_libraries() -> None:
    """Orbax and TensorStore print the tracebacks of what they raise as well, some many times."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # From TensorStore's threads, when the other writes of a save that failed come to an end.
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = hook


def _exit(status: int, problems: Sequence[str]) -> NoReturn:
    with suppress(OSError):  # the status says it where stderr can't
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
    sys.exit(status)


def _read(
    argv: Sequence[str], values: flags.FlagValues, options: Sequence[Option], usage: str
) -> None:
    """Sets the flags from the command line; raises as `parse` does."""
    try:
        extra = values(list(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        raise UsageError([_unknown_flag(error.flagname, values)]) from None
    except (flags.Error, ValueError) as error:
        raise UsageError([str(error)]) from None
    if values["help"].value:
        print(usage)
        raise SystemExit(0)
    problems = [f"{argument}: expected a flag, got a plain argument" for argument in extra]
    problems += [
        f"--{option.name}: missing; expected {option.help}"
        for option in options
        if not values[option.name].value and option.default is None
    ]
    if problems:
        raise UsageError(problems)


def _flags(options: Sequence[Option], keys: Mapping[str, Any]) -> flags.FlagValues:
    """All flags, `keys` being those of the config with their types.

    They are read as text: types are checked together with the experiment file's values.
    """
    values = flags.FlagValues()
    flags.DEFINE_boolean("help", False, "show this", short_name="h", flag_values=values)
    for name, text, default in options:
        flags.DEFINE_string(name, default, text, flag_values=values)
    for key, kind in keys.items():
        flag: flags.Flag[str] = flags.Flag(
            flags.ArgumentParser(), None, _KEY + key, None, "", boolean=kind is bool
        )
        flags.DEFINE_flag(flag, values)
    return values


def _unknown_flag(name: str, values: flags.FlagValues) -> str:
    if name.startswith(_KEY):
        return unknown_key(name.removeprefix(_KEY))
    plain = [f"--{flag}" for flag in values if not flag.startswith(_KEY)]
    return f"--{name}: no such flag{suggestion(f'--{name}', plain)}"


def _literal(text: str, kind: Any) -> Any:
    """`text` read as `kind`; where it can't be, the text itself, for `config.read` to report."""
    if isinstance(kind, types.UnionType):
        return None if text.lower() == "none" else _literal(text, typing.get_args(kind)[0])
    if typing.get_origin(kind) is tuple:
        items = [item.strip() for item in text.strip("()[] ").split(",")]
        return tuple(_literal(item, typing.get_args(kind)[0]) for item in items if item)
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value


def _place(error: Exception, name: str) -> str:
    """FILE:LINE of the line of the experiment file that failed."""
    if isinstance(error, SyntaxError) and error.filename == name:
        return f"{name}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == name]
    return f"{name}:{lines[-1]}" if lines else name


def _reason(error: Exception) -> str:
    """The error in one line."""
    cause = error.args[0] if isinstance(error, AttributeError) and error.args else error
    if isinstance(cause, KeyError) and cause is not error:  # ConfigDict's words are long
        name = re.search(r"\w+", str(cause.args[0]).removeprefix("Key "))
        return unknown_key(name[0] if name else str(cause))
    text = " ".join(str(error).split())
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


def _help(program: str, options: Sequence[Option]) -> str:
    lines = [_usage(program, options, " [--config.KEY=VALUE ...]"), "", "Keys and their defaults:"]
    lines += [f"  --config.{key}={get(Config(), key)!r}" for key in field_types()]
    return "\n".join(lines)


def _usage(program: str, options: Sequence[Option], more: str = "") -> str:
    def usage(option: Option) -> str:
        text = f"--{option.name} {option.name.upper()}"
        return text if option.default is None else f"[{text}]"

    def described(option: Option) -> str:
        default = "" if option.default is None else f" (default: {option.default})"
        return f"  --{option.name}  {option.help}{default}"

    path = Path(program)
    module = path.parent.name if path.stem == "__main__" else path.stem
    shown = " ".join(map(usage, options))
    lines = [f"usage: python -m elpo_jax.{module} {shown}{more}", ""]
    return "\n".join([*lines, *map(described, options)])
