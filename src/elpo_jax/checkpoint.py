"""Checkpoints: parts of the run's state as Orbax items, and a JSON dictionary beside them.

`<folder>/<step>/<part>/` holds one pytree of arrays, so that a part, such as the parameters, can be
restored alone. A checkpoint is written under a temporary name and renamed when it is complete. It
holds a digest of each of its files, because neither Orbax nor the disk notices every flipped bit.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from elpo_jax.errors import RunFault, UsageError, memory_problem
from elpo_jax.learner.update import TrainState

PyTree = Any
_METADATA = "metadata"
_DIGESTS = "digests.json"


class SaveFault(RunFault):
    """A checkpoint can't be written."""


class Metadata(dict[str, Any]):
    """Of the checkpoint `where`; a key that it lacks is a UsageError."""

    def __init__(self, where: Path, given: Mapping[str, Any]):
        super().__init__(given)
        self._where = where

    def __missing__(self, key: str) -> NoReturn:
        words = f"expected metadata with {key!r}, found {', '.join(sorted(self)) or 'none'}"
        other = "another version wrote it; go on with that, or give another --workdir"
        raise UsageError([f"{self._where}: {words}; {other}"])


class Restored(NamedTuple):
    """A checkpoint's content."""

    step: int
    parts: dict[str, PyTree]
    metadata: Metadata


class Checkpoints:
    """The checkpoints of one run, for the process that writes them.

    Args:
      folder: made if missing; what an interrupted save left there is removed in the background.
      keep: how many complete checkpoints stay; older ones go once a newer one is complete.
    """

    def __init__(self, folder: Path, keep: int):
        self._folder = folder.absolute()  # Orbax refuses relative paths
        self._saving: int | None = None
        self._whole: int | None = None  # step whose files have been checked
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(keep),
                save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
                cleanup_tmp_directories=True,
                # Called when all is written, before the rename that makes the checkpoint count.
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
            ),
        )

    def save(self, step: int, parts: Mapping[str, PyTree], metadata: Mapping[str, Any]) -> None:
        """Starts to save; the arrays may be donated as soon as this returns.

        Args:
          step: greater than that of every checkpoint there.
          parts: pytrees of arrays by name.
          metadata: what JSON gives back unchanged.

        Raises:
          ValueError: on a step that isn't new, or a part named 'metadata'.
          SaveFault: this save, or the one before, can't be written.
        """
        if _METADATA in parts:
            raise ValueError(f"parts: expected names other than {_METADATA!r}, got {list(parts)}")
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"checkpoint: expected a step after {latest}, got {step}")
        items: dict[str, Any] = {name: ocp.args.StandardSave(x) for name, x in parts.items()}
        arrays = {name: _signature(part) for name, part in parts.items()}
        items[_METADATA] = ocp.args.JsonSave({"given": dict(metadata), "arrays": arrays})
        self._saving = step
        self._raising(lambda: self._manager.save(step, args=ocp.args.Composite(**items)))

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, once every save is complete."""
        self.wait()
        return newest_step(self._folder)

    def drop_broken(self, aside: Path, warn: Callable[[str], None]) -> None:
        """Makes the newest checkpoint one that is whole, if any is.

        Args:
          aside: the folder that newer, broken ones are moved to.
          warn: told each of them.

        Raises:
          RunFault: all are broken; then none is moved.
        """
        self.wait()
        broken: dict[int, str] = {}
        steps = sorted(_steps(self._folder), reverse=True)
        for step in steps:
            problem = _damage(self._folder / str(step))
            if problem is None:
                self._whole = step
                break
            broken[step] = problem
        if len(broken) == len(steps) > 0:
            lines = [f"{self._folder / str(step)}: {problem}" for step, problem in broken.items()]
            todo = "nothing was changed; put a whole one back, or give another --workdir"
            raise RunFault([f"no checkpoint is whole: {'; '.join(lines)}; {todo}"])
        for step, problem in broken.items():
            source, target = self._folder / str(step), _free_name(aside / f"checkpoint_{step:06d}")
            aside.mkdir(exist_ok=True)
            os.rename(source, target)
            good = steps[len(broken)]
            warn(f"warning: {source}: {problem}; moved to {target}, checkpoint {good} is used")
        self._manager.reload()

    def restore(self, targets: Mapping[str, PyTree]) -> Restored:
        """Reads parts of the newest checkpoint.

        Args:
          targets: pytrees of arrays, or of `jax.ShapeDtypeStruct` with shardings: the structure,
            shapes, dtypes and shardings of the result. Only these parts are read.

        Raises:
          UsageError: there is no checkpoint, or it doesn't fit the targets.
          RunFault: it is broken.
        """
        self.wait()
        return _restore(self._manager, self._folder, targets, None, self._whole)

    def check(self) -> None:
        """Raises what has gone wrong in a save so far; doesn't wait for it."""
        self._raising(self._manager.check_for_errors)

    def wait(self) -> None:
        """Returns when no save is under way; raises what went wrong in one."""
        self._raising(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits, and ends the background threads; raises what went wrong in a save."""
        self._raising(self._manager.close)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        with suppress(SaveFault, MemoryError, RuntimeError):  # the first fault is the one to tell
            self.close()

    def _write_digests(self) -> None:
        """Writes the digests of the checkpoint that is about to be complete."""
        # Not all that begins with the step, which a copy of the user's may too.
        (folder,) = self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        files = (path for path in folder.rglob("*") if path.is_file() and path.parent != folder)
        digests = {str(path.relative_to(folder)): _digest(path) for path in files}
        with open(folder / _DIGESTS, "w", encoding="utf-8") as file:
            json.dump(digests, file)
            file.flush()
            os.fsync(file.fileno())

    def _raising(self, work: Callable[[], Any]) -> None:
        """Runs what may meet a save's error, which Orbax raises as whatever it was."""
        try:
            work()
        except Exception as error:
            if memory_problem(error) is not None:  # that is no fault of the disk
                raise
            where = self._folder if self._saving is None else self._folder / str(self._saving)
            raise SaveFault([f"{where}: {_reason(error)}"]) from error


def load(path: Path, targets: Mapping[str, PyTree]) -> Restored:
    """Reads parts of a checkpoint, also one of a run that is going on.

    Args:
      path: a run's folder or its `checkpoints`, for the newest one, or `checkpoints/<step>`.
      targets: as in `Checkpoints.restore`.

    Raises:
      UsageError: there is no such checkpoint, or it doesn't fit the targets.
      RunFault: it is broken.
    """
    folder, step = path.absolute(), None
    if folder.name.isdecimal():
        folder, step = folder.parent, int(folder.name)
    elif (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    if not folder.is_dir():
        raise UsageError([f"{path}: expected a folder with checkpoints, found none"])
    # Not `read_only`, which warns; without saves or cleaning up, nothing is written either way.
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager(folder, options=options) as manager:
        return _restore(manager, folder, targets, step)


def newest_step(folder: Path) -> int | None:
    """The step of the newest complete checkpoint; None if there is none."""
    return max(_steps(folder), default=None) if folder.is_dir() else None


def parts_of(state: TrainState) -> dict[str, PyTree]:
    """A state as a checkpoint's parts; parameters stand alone, for evaluation and export."""
    return {
        "params": state.params,
        "optimizer": {
            "opt_state": state.opt_state,
            "step": state.step,
            "masters": state.masters,
        },
    }


def state_of(parts: Mapping[str, PyTree]) -> TrainState:
    """The inverse of `parts_of`."""
    return TrainState(params=parts["params"], **parts["optimizer"])


def _restore(
    manager: ocp.CheckpointManager,
    folder: Path,
    targets: Mapping[str, PyTree],
    step: int | None,
    known_whole: int | None = None,
) -> Restored:
    steps = _steps(folder)
    if step is None and steps:
        step = max(steps)
    if step is None or step not in steps:
        wanted = "a checkpoint" if step is None else f"checkpoint {step}"
        raise UsageError([f"{folder}: expected {wanted}, found {sorted(steps) or 'none'}"])
    where = folder / str(step)
    # First of all, since Orbax meets broken files with tracebacks, or doesn't notice.
    problem = None if step == known_whole else _damage(where, {*targets, _METADATA})
    if problem is not None:
        others = sorted(steps - {step})
        raise RunFault([f"{where}: {problem}; other checkpoints there: {others or 'none'}"])
    only_json = ocp.args.Composite(**{_METADATA: ocp.args.JsonRestore()})
    metadata = Metadata(where, manager.restore(step, args=only_json)[_METADATA])
    _check_fit(where, metadata["arrays"], targets)
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(targets))
    items = {name: ocp.args.StandardRestore(shape) for name, shape in shapes.items()}
    # Without parts it is asked for the metadata alone; Orbax would take that for all parts.
    restored = manager.restore(step, args=ocp.args.Composite(**items)) if items else {}
    given = Metadata(where, metadata["given"])
    return Restored(step, {name: restored[name] for name in targets}, given)


def _steps(folder: Path) -> set[int]:
    """Steps of the complete checkpoints: what is under way has a longer name."""
    return {int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()}


def _damage(checkpoint: Path, parts: Collection[str] | None = None) -> str | None:
    """What is wrong with the files of a checkpoint, or of some of its parts; None if nothing is."""
    try:
        digests = json.loads((checkpoint / _DIGESTS).read_text(encoding="utf-8"))
        missing = {_METADATA, *(parts or ())} - {name.partition("/")[0] for name in digests}
        if missing:
            return f"{_DIGESTS} has nothing on {min(missing)}"
        for name, digest in sorted(digests.items()):
            if parts is None or name.partition("/")[0] in parts:
                if not (checkpoint / name).is_file():
                    return f"{name} is missing"
                if _digest(checkpoint / name) != digest:
                    return f"{name} isn't what was saved"
    except FileNotFoundError:
        return f"{_DIGESTS} is missing"
    except OSError as error:
        return f"{Path(error.filename or checkpoint).name}: {error.strerror}"
    except (ValueError, TypeError, AttributeError, RecursionError):  # no JSON, or no such object
        return f"{_DIGESTS} isn't what was saved"
    return None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free_name(path: Path) -> Path:
    """`path`, or with the first number that makes it new."""
    names = [path, *(path.with_name(f"{path.name}_{number}") for number in range(2, 1000))]
    return next(name for name in names if not name.exists())


def _reason(error: BaseException) -> str:
    """An error of Orbax's, or of the libraries below it, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number:
        return os.strerror(int(number[1]))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _signature(tree: PyTree) -> dict[str, str]:
    """'float32[2, 3]' for each leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def _check_fit(
    where: Path, arrays: Mapping[str, Mapping[str, str]], targets: Mapping[str, PyTree]
) -> None:
    """Orbax would cast dtypes without a word, and reports one difference in many lines."""
    problems = []
    for part, target in targets.items():
        expected, found = _signature(target), arrays.get(part, {})
        for path in sorted(expected.keys() | found.keys()):
            ours, theirs = expected.get(path, "nothing"), found.get(path, "nothing")
            if ours != theirs:
                problems.append(f"{where}: {part}{path}: expected {ours}, found {theirs}")
    if problems:
        rest = [f"{where}: and {len(problems) - 5} more"] if len(problems) > 5 else []
        raise UsageError(problems[:5] + rest)
