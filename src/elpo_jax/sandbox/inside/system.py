"""System calls that Python's library doesn't offer, and mounts. Linux only."""

import ctypes
import os
import platform

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
_LOCKABLE = 2 | 4 | 8 | 1024 | 2048  # nosuid, nodev, noexec, noatime, nodiratime as in statvfs

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    """The result of a call; raises OSError when it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(what: str, number: int, *arguments: object) -> int:
    return check(_libc.syscall(ctypes.c_long(number), *arguments), what)


def prctl(what: str, option: int, *values: int) -> int:
    padded = [*values, 0, 0, 0, 0][:4]
    return check(_libc.prctl(option, *(ctypes.c_ulong(value) for value in padded)), what)


def unshare(flags: int) -> None:
    check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    check(_libc.setns(descriptor, kind), "setns")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode())
    data = options.encode() or None
    check(_libc.mount(*arguments, ctypes.c_ulong(flags), data), f"mount {target}")


def bind(source: str, target: str, devices: bool = False) -> None:
    """Shows `source`, read-only, at `target`, which exists."""
    mount(source, target, "none", MS_BIND | MS_REC)
    kept = os.statvfs(target).f_flag & _LOCKABLE  # one that was locked can't be taken away
    wanted = MS_RDONLY | MS_NOSUID | (0 if devices else MS_NODEV)
    mount("none", target, "none", MS_REMOUNT | MS_BIND | wanted | kept)


def pivot(root: str) -> None:
    """Makes a mount point the root of this mount namespace; what was there is gone."""
    os.chdir(root)
    syscall("pivot_root", _PIVOT_ROOT[platform.machine()], b".", b".")
    check(_libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop_capabilities() -> None:
    """Gives up all capabilities, also those that a later program could gain."""
    for capability in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # beyond the last one, or none to drop with
    header = _CapabilityHeader(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    check(_libc.capset(ctypes.byref(header), data), "capset")
