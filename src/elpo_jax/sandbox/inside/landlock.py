"""Landlock: which files this process may open (https://docs.kernel.org/userspace-api/landlock.html)."""

import ctypes
import os
from collections.abc import Iterable

from elpo_jax.sandbox.inside.system import PR_SET_NO_NEW_PRIVS, prctl, syscall

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_CHAR, _MAKE_DIR, _MAKE_REG = (1 << n for n in range(4, 9))
_MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = (1 << n for n in range(9, 13))
_REFER, _TRUNCATE = 1 << 13, 1 << 14  # since versions 2 and 3
_FIRST = (1 << 13) - 1

READ = READ_FILE | READ_DIR
WORK = READ | WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER
WORK |= _TRUNCATE
_ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | _TRUNCATE


class _Handled(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _Rule(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """The kernel's version of Landlock, at least 1.

    Raises:
      OSError: it has none.
    """
    return syscall("landlock", _CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))


def ruleset(rules: Iterable[tuple[str, int]]) -> int:
    """A descriptor of rules: paths, and what is allowed beneath them. All else is denied.

    Raises:
      OSError: no Landlock, or a path isn't there.
    """
    known = version()
    files = _FIRST | (_REFER if known >= 2 else 0) | (_TRUNCATE if known >= 3 else 0)
    network = 0b11 if known >= 4 else 0  # bind and connect of TCP
    scoped = 0b11 if known >= 6 else 0  # abstract sockets and signals
    handled = _Handled(files, network, scoped)
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    arguments = (ctypes.byref(handled), ctypes.c_size_t(size), ctypes.c_uint32(0))
    descriptor = syscall("landlock_create_ruleset", _CREATE, *arguments)
    for path, allowed in rules:
        _add(descriptor, path, allowed & files)
    return descriptor


def restrict(descriptor: int) -> None:
    """Puts this thread, and all it starts, under the rules for good."""
    prctl("no_new_privs", PR_SET_NO_NEW_PRIVS, 1)
    syscall("landlock_restrict_self", _RESTRICT, ctypes.c_int(descriptor), ctypes.c_uint32(0))


def _add(ruleset: int, path: str, allowed: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            allowed &= _ON_FILES
        rule = _Rule(allowed, parent)
        arguments = (ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule))
        syscall(f"landlock_add_rule {path}", _ADD_RULE, *arguments, ctypes.c_uint32(0))
    finally:
        os.close(parent)
