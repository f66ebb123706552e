"""Tensors and tokens from a seed and a name, the same on every machine; no torch.

`RandomState`, since NumPy keeps its numbers for good, which it doesn't promise of `default_rng`.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

_EMBEDDING = 0.5
_KERNEL = 1.6  # over the root of the inputs
_NORM = 0.4  # around 1
_BIAS = 0.5


def random_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A checkpoint's tensors, float32, large enough that every one of them shows in the logits.

    Args:
      shapes: by the tensors' names, which are the seeds.
    """
    return {name: _tensor(name, shape) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    normal = _state(name).standard_normal(shape)
    if name.endswith("bias"):
        normal = _BIAS * normal
    elif name.endswith("norm.weight"):
        normal = 1 + _NORM * normal
    elif "embed_tokens" in name:
        normal = _EMBEDDING * normal
    else:
        normal = _KERNEL / np.sqrt(shape[1]) * normal
    return normal.astype(np.float32)


def random_rows(name: str, lengths: Sequence[int], vocab_size: int) -> list[np.ndarray]:
    """A row of tokens of each length: int32 [T]."""
    state = _state(name)
    return [state.randint(0, vocab_size, length).astype(np.int32) for length in lengths]


def _state(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))
