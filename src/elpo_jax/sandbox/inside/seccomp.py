"""The system calls that a snippet may make, as a seccomp filter.

What is dangerous is denied by name; what is newer than the names here answers ENOSYS, so that a
new kernel opens nothing.
"""

import ctypes
import errno
import platform
import struct

from elpo_jax.sandbox.inside.system import PR_SET_NO_NEW_PRIVS, prctl

_PR_SET_SECCOMP = 22
_MODE_FILTER = 2

_KILL = 0x80000000
_ERRNO = 0x00050000
_ALLOW = 0x7FFF0000

_LOAD = 0x20  # ld [k]: 32 bits of what the filter is given
_JUMP_EQUAL = 0x15
_JUMP_AT_LEAST = 0x35
_JUMP_ANY_BIT = 0x45
_RETURN = 0x06

_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in what it is given
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000

# The numbers on x86_64 and aarch64; -1 where there is no such call.
_DENIED = {
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "bind": (49, 200),
    "listen": (50, 201), "accept4": (288, 242),
    "fork": (57, -1), "vfork": (58, -1), "execve": (59, 221), "execveat": (322, 281),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "memfd_create": (319, 279), "unshare": (272, 97), "setns": (308, 268),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "mknod": (133, -1), "mknodat": (259, 33), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "swapon": (167, 224), "swapoff": (168, 225),
    "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "iopl": (172, -1), "ioperm": (173, -1), "personality": (135, 92), "acct": (163, 89),
    "quotactl": (179, 60), "syslog": (103, 116), "vhangup": (153, 58), "_sysctl": (156, -1),
    "modify_ldt": (154, -1), "uselib": (134, -1), "lookup_dcookie": (212, 18),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "nfsservctl": (180, 42),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semctl": (66, 191), "msgget": (68, 186), "msgctl": (71, 187), "mq_open": (240, 180),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "io_setup": (206, 0), "seccomp": (317, 277), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "inotify_init": (253, -1), "inotify_init1": (294, 26), "sync": (162, 81), "syncfs": (306, 267),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54),
}  # fmt: skip
# Landlock leaves these alone, so that a snippet among the host's files could do them to any that
# belong to its user: there they answer as if they had been done.
_PRETENDED = {
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88),
}  # fmt: skip
_TRUNCATE = (76, 45)  # by path, which Landlock knows since its version 3
_FALLOCATE = (285, 47)  # takes gigabytes at once; the C library writes zeros instead
_CLONE = (56, 220)
_CLOSE_RANGE = (436, 436)
_KILL_CALL = (62, 129)
_TGKILL = (234, 131)
_PRLIMIT = (302, 261)
_SET_AFFINITY = (203, 122)
_SOCKETPAIR = (53, 199)
_PRCTL = (157, 167)
_FCNTL = (72, 25)
_IOCTL = (16, 29)
_SENDTO = (44, 206)

# From here on the architectures share their numbers.
_SHARED = 424
# openat2, faccessat2, epoll_pwait2, futex_waitv, fchmodat2, futex_wake and _wait
_ALLOWED_SHARED = (437, 439, 441, 449, 452, 454, 455)

_THREAD = 0x00010000  # CLONE_THREAD
_FILES = 0x00000400  # CLONE_FILES
_AF_UNIX = 1
# Calls of which some values of an argument are denied: its number, and the values.
_DENIED_VALUES = (
    (
        _PRCTL,
        0,
        (1, 4, 22),
    ),  # PR_SET_PDEATHSIG, PR_SET_DUMPABLE (by which it would hide), PR_SET_SECCOMP
    # F_SETOWN and F_SETOWN_EX, by which others get signals, F_SETLEASE, F_NOTIFY
    (_FCNTL, 1, (8, 15, 1024, 1026)),
)
# What ioctl may ask for. Of the rest, some changes files that are open for reading only.
# TCGETS, TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, TCGETS2
_IOCTLS = (0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A)


def program(pid: int, among_host_files: bool) -> bytes:
    """The filter for the process `pid`, which may send signals to itself only.

    Args:
      pid: as the process itself knows it.
      among_host_files: it has no root of its own, so the host's files need more care.

    Raises:
      OSError: for a machine whose numbers aren't known.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"seccomp: no numbers for {machine}")
    column = list(_ARCHITECTURES).index(machine)
    deny, allow = _return(_ERRNO | errno.EPERM), _return(_ALLOW)
    done = _return(_ERRNO | 0)
    code = [
        _load(_ARCHITECTURE),
        _jump(_JUMP_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _return(_KILL),
        _load(_NUMBER),
    ]
    if machine == "x86_64":
        code += [_jump(_JUMP_AT_LEAST, _X32, 0, 1), _return(_KILL)]
    if among_host_files:
        code += [_jump(_JUMP_EQUAL, n[column], 0, 1) + done for n in _PRETENDED.values()]
        code += [_jump(_JUMP_EQUAL, _TRUNCATE[column], 0, 1), deny]
        none = _return(_ERRNO | errno.EOPNOTSUPP)
        code += [_jump(_JUMP_EQUAL, _FALLOCATE[column], 0, 1), none]
    # Threads have one table of descriptors: others' couldn't be counted.
    code += [_jump(_JUMP_EQUAL, _CLOSE_RANGE[column], 0, 4), _load(_ARGUMENT + 8 * 2)]
    code += [_jump(_JUMP_EQUAL, 0, 1, 0), deny, allow]
    new = [_jump(_JUMP_EQUAL, number, 0, 1) + allow for number in _ALLOWED_SHARED]
    new_size = 2 * len(new) + 1
    code += [_jump(_JUMP_AT_LEAST, _SHARED, 0, new_size), *new, _return(_ERRNO | errno.ENOSYS)]
    code += [_jump(_JUMP_EQUAL, _CLONE[column], 0, 3), _load(_ARGUMENT)]
    code += [_jump(_JUMP_ANY_BIT, _FILES, 1, 0), deny, _load(_NUMBER)]
    for numbers in _DENIED.values():
        if numbers[column] >= 0:
            code += [_jump(_JUMP_EQUAL, numbers[column], 0, 1), deny]
    # A call with a condition on an argument: the block ends the program, one way or the other.
    for numbers, argument, jump in (
        (_CLONE, 0, _jump(_JUMP_ANY_BIT, _THREAD, 1, 0)),
        (_KILL_CALL, 0, _jump(_JUMP_EQUAL, pid, 1, 0)),
        (_TGKILL, 0, _jump(_JUMP_EQUAL, pid, 1, 0)),
        (_PRLIMIT, 0, _jump(_JUMP_EQUAL, 0, 1, 0)),
        (_SET_AFFINITY, 0, _jump(_JUMP_EQUAL, 0, 1, 0)),
        (_SOCKETPAIR, 0, _jump(_JUMP_EQUAL, _AF_UNIX, 1, 0)),
    ):
        code += [_jump(_JUMP_EQUAL, numbers[column], 0, 4), _load(_ARGUMENT + 8 * argument)]
        code += [jump, deny, allow]
    for numbers, argument, values in _DENIED_VALUES:
        size = 2 * len(values) + 2
        code += [_jump(_JUMP_EQUAL, numbers[column], 0, size), _load(_ARGUMENT + 8 * argument)]
        code += [_jump(_JUMP_EQUAL, value, 0, 1) + deny for value in values]
        code.append(allow)
    code += [_jump(_JUMP_EQUAL, _IOCTL[column], 0, 2 * len(_IOCTLS) + 2), _load(_ARGUMENT + 8)]
    code += [_jump(_JUMP_EQUAL, value, 0, 1) + allow for value in _IOCTLS]
    code.append(deny)
    # Datagrams go where the pair's other end is, and to no address (argument 4, a pointer).
    code += [_jump(_JUMP_EQUAL, _SENDTO[column], 0, 7), _load(_ARGUMENT + 8 * 4)]
    code += [_jump(_JUMP_EQUAL, 0, 1, 0), deny, _load(_ARGUMENT + 8 * 4 + 4)]
    code += [_jump(_JUMP_EQUAL, 0, 1, 0), deny, allow]
    return b"".join([*code, allow])


def install(code: bytes) -> None:
    """Puts this thread, and all it starts, under a filter for good."""
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    given = Program(len(code) // 8, ctypes.addressof(buffer))
    prctl("no_new_privs", PR_SET_NO_NEW_PRIVS, 1)
    prctl("seccomp", _PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(given))


def _load(offset: int) -> bytes:
    return struct.pack("=HBBI", _LOAD, 0, 0, offset)


def _jump(kind: int, value: int, if_so: int, if_not: int) -> bytes:
    return struct.pack("=HBBI", kind, if_so, if_not, value & 0xFFFFFFFF)


def _return(value: int) -> bytes:
    return struct.pack("=HBBI", _RETURN, 0, 0, value)
