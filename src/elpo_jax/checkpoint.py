"""Checkpoints: parts of the run's state as Orbax items, and a JSON dictionary beside them.

`<folder>/<step>/<part>/` holds one pytree of arrays, so that a part, such as the parameters, can be
restored alone. A checkpoint is written under a temporary name and renamed when it is complete.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from elpo_jax.errors import UsageError

PyTree = Any
_METADATA = "metadata"


class Restored(NamedTuple):
    """A checkpoint's content."""

    step: int
    parts: dict[str, PyTree]
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, for the process that writes them.

    Args:
      folder: made if missing; what an interrupted save left there is removed in the background.
      keep: how many complete checkpoints stay; older ones go once a newer one is complete.
    """

    def __init__(self, folder: Path, keep: int):
        self._folder = folder.absolute()  # Orbax refuses relative paths
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(keep),
                save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
                cleanup_tmp_directories=True,
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
        """
        if _METADATA in parts:
            raise ValueError(f"parts: expected names other than {_METADATA!r}, got {list(parts)}")
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"checkpoint: expected a step after {latest}, got {step}")
        items: dict[str, Any] = {name: ocp.args.StandardSave(x) for name, x in parts.items()}
        arrays = {name: _signature(part) for name, part in parts.items()}
        items[_METADATA] = ocp.args.JsonSave({"given": dict(metadata), "arrays": arrays})
        self._manager.save(step, args=ocp.args.Composite(**items))

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, once every save is complete."""
        self.wait()
        return self._manager.latest_step()

    def restore(self, targets: Mapping[str, PyTree]) -> Restored:
        """Reads parts of the newest checkpoint.

        Args:
          targets: pytrees of arrays, or of `jax.ShapeDtypeStruct` with shardings: the structure,
            shapes, dtypes and shardings of the result. Only these parts are read.

        Raises:
          UsageError: there is no checkpoint, or it doesn't fit the targets.
        """
        self.wait()
        return _restore(self._manager, self._folder, targets, None)

    def wait(self) -> None:
        """Returns when no save is under way; raises what went wrong in one."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def load(path: Path, targets: Mapping[str, PyTree]) -> Restored:
    """Reads parts of a checkpoint, also one of a run that is going on.

    Args:
      path: a run's folder or its `checkpoints`, for the newest one, or `checkpoints/<step>`.
      targets: as in `Checkpoints.restore`.

    Raises:
      UsageError: there is no such checkpoint, or it doesn't fit the targets.
    """
    folder, step = path.absolute(), None
    if folder.name.isdigit():
        folder, step = folder.parent, int(folder.name)
    elif (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    if not folder.is_dir():
        raise UsageError([f"{path}: expected a folder with checkpoints, found none"])
    # Not `read_only`, which warns; without saves or cleaning up, nothing is written either way.
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager(folder, options=options) as manager:
        return _restore(manager, folder, targets, step)


def _restore(
    manager: ocp.CheckpointManager, folder: Path, targets: Mapping[str, PyTree], step: int | None
) -> Restored:
    steps = manager.all_steps()
    if step is None and steps:
        step = max(steps)
    if step is None or step not in steps:
        wanted = "a checkpoint" if step is None else f"checkpoint {step}"
        raise UsageError([f"{folder}: expected {wanted}, found {sorted(steps) or 'none'}"])
    only_json = ocp.args.Composite(**{_METADATA: ocp.args.JsonRestore()})
    metadata = manager.restore(step, args=only_json)[_METADATA]
    _check_fit(folder / str(step), metadata["arrays"], targets)
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(targets))
    items = {name: ocp.args.StandardRestore(shape) for name, shape in shapes.items()}
    restored = manager.restore(step, args=ocp.args.Composite(**items))
    return Restored(step, {name: restored[name] for name in targets}, metadata["given"])


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
