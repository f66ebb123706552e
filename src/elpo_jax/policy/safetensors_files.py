"""A checkpoint's safetensors files: what they hold, read slice by slice.

The files are mapped into memory; only what a slice asks for is copied.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file.

    Attributes:
      shape: its sizes.
      dtype: in the format's words: 'F32', 'BF16', ....
      file: where it lies.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path
    _slice: Any

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """A copy of a part, one slice of step 1 an axis."""
        parts = []
        for part, size in zip(index, self.shape, strict=True):
            start, stop, _ = part.indices(size)  # the library takes no bounds beyond the size
            # It copies a whole axis at once only where no bounds are named.
            parts.append(slice(None) if stop - start == size else slice(start, stop))
        return self._slice[tuple(parts)]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the folder's tensors.

    Raises:
      ValueError: there are none, or some are missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        other = sorted(path.name for path in folder.glob("*.bin"))
        found = f", found {other[0]}: save it again with safe_serialization=True" if other else ""
        raise ValueError(f"{folder}: expected {SINGLE} or {INDEX}{found}")
    names = sorted(set(_weight_map(folder / INDEX).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder / INDEX}: expected the {len(names)} files that it names, missing: "
            f"{listed(missing)}"
        )
    return [folder / name for name in names]


@contextmanager
def open_tensors(folder: Path) -> Iterator[dict[str, Tensor]]:
    """The folder's tensors by name, for as long as the block lasts.

    Raises:
      ValueError: the files are missing or broken, or not what the index says.
    """
    tensors: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for path in weight_files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="numpy"))
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path}: expected safetensors, got: {error}") from None
            for name in file.keys():  # noqa: SIM118  no mapping
                if name in tensors:
                    raise ValueError(f"{path}: {name}: is in {tensors[name].file.name} as well")
                part = file.get_slice(name)
                tensors[name] = Tensor(tuple(part.get_shape()), part.get_dtype(), path, part)
        if not (folder / SINGLE).is_file():
            _check_index(folder / INDEX, tensors)
        yield tensors


def listed(names: list[str], most: int = 8) -> str:
    """'a, b, c and 4 more'."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _weight_map(index: Path) -> Mapping[str, str]:
    """Tensor name to file name."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = set(found.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{index}: expected an object with a weight_map, got {what}") from None
    # A name with folders in it would lead out of the checkpoint.
    odd = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if odd or not names:
        raise ValueError(f"{index}: weight_map: expected names of files beside it, got {odd}")
    return found


def _check_index(index: Path, tensors: Mapping[str, Tensor]) -> None:
    wrong = [
        f"{name} in {file}"
        for name, file in _weight_map(index).items()
        if name not in tensors or tensors[name].file.name != file
    ]
    if wrong:
        raise ValueError(f"{index}: expected what the files hold, got {listed(wrong)}")
