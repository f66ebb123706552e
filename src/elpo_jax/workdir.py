"""A run's folder: what lies where, who may write there, and files that are never half written."""

import errno
import fcntl
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elpo_jax.errors import UsageError

# All that a run that was killed at its very start may have left.
_BEFORE_CONFIG = {".lock", ".config.json.tmp"}


@dataclass(frozen=True)
class WorkDir:
    """The layout of a run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def notes(self) -> Path:
        """Lines on what was read of data files and what of it isn't used; only if there are any."""
        return self.path / "notes.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def trees(self) -> Path:
        return self.path / "trees"

    def step_trees(self, step: int) -> Path:
        """Trees of a training step."""
        return self.trees / f"step_{step:06d}.json"

    def evaluation_trees(self, step: int) -> Path:
        """Trees of the evaluation after a step."""
        return self.trees / f"eval_{step:06d}.json"

    def saved_trees(self) -> list[tuple[str, int, Path]]:
        """The files of trees: 'step' or 'eval', the step, and the file; by step, 'step' first."""
        found = []
        for path in self.trees.glob("*.json"):
            kind, _, step = path.stem.partition("_")
            if kind in ("step", "eval") and step.isdecimal():
                found.append((kind, int(step), path))
        return sorted(found, key=lambda each: (each[1], each[0] == "eval"))

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def cold_start(self) -> Path:
        """State of a cold start under way."""
        return self.path / "cold_start"

    @property
    def export(self) -> Path:
        """The policy as a Hugging Face folder, where `train.export` asks for it."""
        return self.path / "export"

    @property
    def faults(self) -> Path:
        """Dumps of updates that failed, and broken checkpoints."""
        return self.path / "faults"

    def refuse_foreign(self) -> None:
        """Reads only.

        Raises:
          UsageError: the folder holds something else than a run, which might be overwritten.
        """
        try:
            if not self.path.is_dir() or self.config.exists():
                return
            others = {entry.name for entry in self.path.iterdir()} - _BEFORE_CONFIG
        except OSError as error:
            raise UsageError([self._unusable(error)]) from None
        if others:
            expected = "expected an empty folder or a run's, with a config.json"
            raise UsageError(
                [f"{self.path}: {expected}, found {min(others)!r}; give another --workdir"]
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and keeps other processes out of it until the block, or process, ends.

        Raises:
          UsageError: the folder can't be made or written, or another process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise UsageError([self._unusable(error)]) from None
        try:
            try:
                # A POSIX lock, unlike flock, isn't inherited by children that outlive the process.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise UsageError([f"{self.path}: can't be locked: {error.strerror}"]) from None
                owner = os.read(file, 32).decode() or "?"
                raise UsageError([f"{self.path}: in use by process {owner}"]) from None
            os.ftruncate(file, 0)
            os.write(file, str(os.getpid()).encode())
            yield
        finally:
            os.close(file)

    def _unusable(self, error: OSError) -> str:
        return f"{self.path}: expected a folder to write, got: {error.strerror}"


def cache_root() -> Path:
    """Where what can be made again is kept: $XDG_CACHE_HOME/elpo_jax, or ~/.cache/elpo_jax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elpo_jax"


@contextmanager
def cache_entry(folder: Path) -> Iterator[Path]:
    """A folder under a temporary name, `.NAME.HOST.PID`, which is `folder` after the block.

    What processes of this host that are gone left under such names is removed; a cache may be
    shared with others.

    Raises:
      OSError: the cache can't be written.
    """
    host = re.sub(r"\W", "-", platform.node())
    for path in folder.parent.glob(f".*.{host}.*"):
        number = path.name.rpartition(".")[2]
        if number.isdecimal() and not _is_running(int(number)):
            shutil.rmtree(path, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{host}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if not folder.exists():  # else another run was faster
            os.rename(temporary, folder)
    finally:
        for _ in range(20):  # a save that failed may still write some of its files
            shutil.rmtree(temporary, ignore_errors=True)
            if not temporary.exists():
                break
            time.sleep(0.1)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's, or no number of a process
        pass
    return True


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError of the block the path that the system left out."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def check_file(path: Path) -> None:
    """For before what takes long; what is there stands.

    Raises:
      UsageError: no file can be written there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise UsageError([f"{path}: expected a file to write, got: {error.strerror}"]) from None


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file so that a kill or a full disk leaves the old content or the new one.

    Raises:
      OSError: naming the file; the old content stands.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as `write_atomic` does; refuses NaN and infinities."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
