"""Locks a zygote, and then each of its children, in. See `elpo_jax.sandbox.base.Tier`."""

import contextlib
import math
import os
import resource
import signal
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elpo_jax.sandbox.inside import landlock, seccomp
from elpo_jax.sandbox.inside import system as sys_

WORK = "/tmp"  # a snippet's folder where it has a root of its own
_ROOT = "/sys"  # where that root is put together: a folder that everyone has and no snippet needs
_OUTSIDE = 65534  # the user outside (nobody) who a snippet of root's is
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_MAX_THREADS = 16  # of the zygote and its child together, which are a user of their own
_WATCHED_THREADS = 64  # of a child, where the kernel would count its user's or, for root, none
_NICE = 5  # a step behind the trainer
_DEPTH = 32  # of a work folder that has to be watched
_NO_END = 1 << 62
_DROPPED_FOLDERS = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True)
class Visible:
    """What of the disk a snippet may read.

    Attributes:
      library: Python's own library.
      packages: folders and files of what was loaded from elsewhere.
    """

    library: str
    packages: tuple[str, ...]


class Jail:
    """What a zygote has ready for its children.

    Args:
      mechanisms: of the tier.
      visible: what a snippet may read.
      folder: the zygote's own, for work folders where there are no namespaces.

    Raises:
      OSError: the kernel, or whoever set up this container, doesn't allow a mechanism.
    """

    def __init__(self, mechanisms: Sequence[str], visible: Visible, folder: str):
        self._mechanisms = frozenset(mechanisms)
        self.work = WORK if "namespaces" in self._mechanisms else os.path.realpath(folder)
        self._proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self._pid_namespace = -1
        self._rules = -1
        _offer_to_killer()
        if "namespaces" in self._mechanisms:
            _enter_namespaces(visible, self._proc)
        elif "landlock" in self._mechanisms:
            self._rules = landlock.ruleset(_rules(visible, self.work))
        if "seccomp" in self._mechanisms:
            seccomp.program(1, False)  # is this machine known?

    def became_first(self) -> None:
        """To be called by the zygote proper, the first process of its own PID namespace."""
        self._pid_namespace = os.open("self/ns/pid", os.O_RDONLY, dir_fd=self._proc)
        os.close(self._proc)

    def fork(self) -> int:
        """As `os.fork`, into a PID namespace of its own if there are namespaces."""
        if "namespaces" not in self._mechanisms:
            return os.fork()
        sys_.unshare(sys_.CLONE_NEWPID)
        child = os.fork()
        if child:
            sys_.setns(self._pid_namespace, sys_.CLONE_NEWPID)
        return child

    def lock(self, limits: Mapping[str, Any], address_space: int) -> None:
        """Locks this process, a fresh child, in; its current folder is then its work folder.

        Args:
          limits: fields of `base.Limits`.
          address_space: bytes that the zygote has mapped.
        """
        os.nice(_NICE)
        if "namespaces" in self._mechanisms:
            sys_.unshare(sys_.CLONE_NEWNS)
            size = f"size={limits['disk_mb']}m,nr_inodes={limits['files'] + 1},mode=700"
            sys_.mount("work", WORK, "tmpfs", sys_.MS_NOSUID | sys_.MS_NODEV, size)
        os.chdir(self.work)
        _set_limits(limits, address_space, self.watched is not None)
        if self._mechanisms:
            sys_.prctl("no_new_privs", sys_.PR_SET_NO_NEW_PRIVS, 1)
            with contextlib.suppress(OSError):  # an unprivileged process has nothing to drop
                sys_.drop_capabilities()
        sys_.prctl("pdeathsig", sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
        if "landlock" in self._mechanisms:
            rules = self._rules
            if rules < 0:  # the new root holds nothing that can't be read
                rules = landlock.ruleset(
                    [("/", landlock.READ), (WORK, landlock.WORK), *_device_rules()]
                )
            landlock.restrict(rules)
        if "seccomp" in self._mechanisms:
            seccomp.install(seccomp.program(os.getpid(), "namespaces" not in self._mechanisms))

    @property
    def watched(self) -> str | None:
        """The work folder, where nothing but a watcher limits it."""
        return None if "namespaces" in self._mechanisms else self.work

    def clean(self) -> None:
        """Empties the work folder, where it doesn't vanish with its process."""
        if self.watched is not None:
            empty(self.work)

    def leave(self) -> None:
        """Removes the work folder, where it is on disk: the trainer may be gone."""
        if self.watched is not None:
            self.clean()
            os.chdir("/")
            os.rmdir(self.work)


def has_too_many_threads(child: int) -> bool:
    """Whether a process has more threads than it may."""
    try:
        return os.stat(f"/proc/{child}/task").st_nlink - 2 > _WATCHED_THREADS
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended


def is_over(folder: str, child: int, limits: Mapping[str, Any]) -> bool:
    """Whether a process has more on disk than it may: in its work folder, or unlinked but open.

    Args:
      folder: its work folder, without links in the path.
      child: its process id.
      limits: fields of `base.Limits`.
    """
    allowed = limits["disk_mb"] << 20
    size, count = used(folder, allowed, limits["files"])
    return (
        count > limits["files"] or size > allowed or size + held(folder, child, allowed) > allowed
    )


def used(folder: str, max_size: int, max_count: int) -> tuple[int, int]:
    """Bytes and files in a folder; no end of them where it is too deep to be looked through.

    What is there may change meanwhile: links aren't followed, nor is a path taken twice. It looks
    no further once there is more than the given bytes or files.
    """
    size = count = 0
    todo: list[list[str]] = []  # folders still to be looked through, level by level
    open_folders = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        while open_folders:
            here = open_folders[-1]
            if len(todo) < len(open_folders):
                names, new_size, new_count = _look(here, max_size - size, max_count - count)
                todo.append(names)
                size, count = size + new_size, count + new_count
                if size > max_size or count > max_count:
                    return size, count
            if todo[-1]:
                below = _open_folder(todo[-1].pop(), here)
                if below >= 0:
                    open_folders.append(below)
                if len(open_folders) > _DEPTH:
                    return _NO_END, _NO_END
            else:
                todo.pop()
                os.close(open_folders.pop())
    finally:
        for descriptor in open_folders:
            os.close(descriptor)
    return size, count


def _look(here: int, max_size: int, max_count: int) -> tuple[list[str], int, int]:
    """The folders in an open folder, and how many bytes and entries it has."""
    names = []
    size = count = 0
    with os.scandir(here) as entries:
        for entry in entries:
            count += 1
            try:
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    names.append(entry.name)
            except FileNotFoundError:
                continue  # it went meanwhile
            except PermissionError:
                os.fchmod(here, stat.S_IRWXU)  # it counts the next time
            if size > max_size or count > max_count:
                break
    return names, size, count


def _open_folder(name: str, above: int) -> int:
    """A descriptor of a folder in another, -1 where it is gone or something else by now."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW
    with contextlib.suppress(OSError):
        return os.open(name, os.O_RDONLY | flags, dir_fd=above)
    with contextlib.suppress(OSError):  # not readable: it is the next time
        there = os.open(name, os.O_PATH | flags, dir_fd=above)
        try:
            os.chmod(f"/proc/self/fd/{there}", stat.S_IRWXU)
        finally:
            os.close(there)
    return -1


def held(folder: str, child: int, most: int) -> int:
    """Bytes of unlinked files that a process keeps by a descriptor or by mapping them.

    Of a mapped file's size nothing is known without a descriptor: it counts as `most`.
    """
    known: dict[int, int] = {}
    try:
        for name in os.listdir(f"/proc/{child}/fd"):
            path = f"/proc/{child}/fd/{name}"
            try:
                file = os.stat(path)
                is_memory = os.readlink(path).startswith("/memfd:")  # what it gets as its stdin
            except FileNotFoundError:
                continue  # it was closed meanwhile
            if stat.S_ISREG(file.st_mode) and not file.st_nlink and not is_memory:
                known[file.st_ino] = file.st_blocks * 512
        with open(f"/proc/{child}/maps", "rb") as maps:
            lines = [line.split() for line in maps if line.endswith(b" (deleted)\n")]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0  # it has ended, or is about to: it can't make itself unreadable (`seccomp`)
    inside = f"{folder}/".encode()
    for line in lines:
        if line[5].startswith(inside):
            known.setdefault(int(line[4]), most)
    return sum(known.values())


def empty(folder: str) -> None:
    """Removes all in a folder, however deep; links are removed, not followed.

    It goes down and up again a step at a time, since neither paths nor recursion reach as deep as
    a snippet may. Nothing else may be at work there.
    """
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    above: list[tuple[str, list[str]]] = []  # the way here: names, and what is left beside each
    left = _unlink_files(here)
    try:
        while left or above:
            if left:
                name = left.pop()
                os.chmod(name, stat.S_IRWXU, dir_fd=here)
                here = _step(name, here)
                above.append((name, left))
                left = _unlink_files(here)
            else:
                here = _step("..", here)
                name, left = above.pop()
                os.rmdir(name, dir_fd=here)
    finally:
        os.close(here)


def _step(name: str, here: int) -> int:
    there = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
    os.close(here)
    return there


def _unlink_files(folder: int) -> list[str]:
    """Removes what aren't folders, and returns the names of those."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
    return [name for name, is_folder in found if is_folder]


def _set_limits(limits: Mapping[str, Any], address_space: int, is_watched: bool) -> None:
    cpu = 1 + 2 * math.ceil(limits["cpu_seconds"])  # in case the watcher fails
    for kind, value in (
        (resource.RLIMIT_AS, address_space + (limits["memory_mb"] << 20)),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, limits["disk_mb"] << 20),
        (resource.RLIMIT_NOFILE, 64 if is_watched else 256),  # unlinked files are on the host's
        *([] if is_watched else [(resource.RLIMIT_NPROC, _MAX_THREADS)]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _offer_to_killer() -> None:
    """Has the kernel end this process or a child, rather than the trainer, when memory is full.

    A child's memory is its zygote's and its own, so it is the first. (It can't say so itself: in a
    namespace its /proc entries belong to the host's root.)
    """
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _rules(visible: Visible, work: str) -> list[tuple[str, int]]:
    """Landlock rules where the host's own root is what a snippet sees."""
    rules = [(work, landlock.WORK), (visible.library, landlock.READ_DIR)]
    inside = (entry for entry in os.scandir(visible.library) if entry.name not in _DROPPED_FOLDERS)
    rules += [(entry.path, landlock.READ) for entry in inside]
    rules += [(path, landlock.READ) for path in (*visible.packages, *_LIBRARIES)]
    rules += _device_rules()
    return [(path, allowed) for path, allowed in rules if os.path.exists(path)]


def _device_rules() -> list[tuple[str, int]]:
    return [(path, landlock.READ_FILE | landlock.WRITE_FILE) for path in _DEVICES]


# --- Namespaces -------------------------------------------------------------------------------


def _enter_namespaces(visible: Visible, proc: int) -> None:
    """A root with what is visible and `_LIBRARIES`, no network, a user who is nobody outside.

    Args:
      visible: what a snippet may read.
      proc: descriptor of /proc, which the new root doesn't have.
    """
    if os.geteuid() == 0:
        # The host's folders may only be root's to look into, so the root comes first.
        sys_.unshare(sys_.CLONE_NEWNS)
        _build_root(visible)
        _become_nobody(proc)
    else:
        user, group = os.geteuid(), os.getegid()
        sys_.unshare(sys_.CLONE_NEWUSER | sys_.CLONE_NEWNS)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {user} 1"),
            ("gid_map", f"0 {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        _build_root(visible)
    sys_.unshare(sys_.CLONE_NEWNET | sys_.CLONE_NEWIPC | sys_.CLONE_NEWUTS | sys_.CLONE_NEWPID)


def _become_nobody(proc: int) -> None:
    """A user namespace whose root is nobody outside; a child that is still root sets it up."""
    entered, enter = os.pipe()
    done, finish = os.pipe()
    zygote = os.getpid()
    helper = os.fork()
    if not helper:
        status = 1
        try:
            os.read(entered, 1)
            for name in ("uid_map", "gid_map"):
                path = f"{zygote}/{name}"
                file = os.open(path, os.O_WRONLY, dir_fd=proc)
                os.write(file, f"0 {_OUTSIDE} 1".encode())
            os.write(finish, b"1")
            status = 0
        finally:
            os._exit(status)
    os.close(finish)
    sys_.unshare(sys_.CLONE_NEWUSER | sys_.CLONE_NEWNS)
    os.write(enter, b"1")
    is_set_up = os.read(done, 1)
    for descriptor in (entered, enter, done):
        os.close(descriptor)
    os.waitpid(helper, 0)
    if not is_set_up:
        raise OSError(1, "user namespace: can't be given a user outside")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _build_root(visible: Visible) -> None:
    """Makes a small read-only tree this mount namespace's root."""
    sys_.mount("none", "/", "none", sys_.MS_REC | sys_.MS_PRIVATE)
    sys_.mount("root", _ROOT, "tmpfs", sys_.MS_NOSUID | sys_.MS_NODEV, "size=1m,mode=755")
    for path in (*_LIBRARIES, visible.library):
        _show(path)
    # What else is installed there is nobody's business; the packages in it come back below.
    hidden = [f"{_ROOT}{visible.library}/{name}" for name in _DROPPED_FOLDERS]
    hidden = [path for path in hidden if os.path.isdir(path)]
    for path in hidden:
        sys_.mount("none", path, "tmpfs", sys_.MS_NOSUID | sys_.MS_NODEV, "size=1m,mode=755")
    for path in visible.packages:
        _show(path)
    for path in _DEVICES:
        _show(path, devices=True)
    os.makedirs(_ROOT + WORK, exist_ok=True)
    for path in (*hidden, _ROOT):
        flags = sys_.MS_REMOUNT | sys_.MS_BIND | sys_.MS_RDONLY | sys_.MS_NOSUID | sys_.MS_NODEV
        sys_.mount("none", path, "none", flags)
    sys_.pivot(_ROOT)


def _show(path: str, devices: bool = False) -> None:
    """Puts a path of the host's, if it is there, at the same place of the new root."""
    target = _ROOT + path
    if not os.path.exists(path) or os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    sys_.bind(path, target, devices)
