"""A checkpoint's tensors into the mesh's shards, one tensor at a time.

Every parameter is allocated on the devices, and filled there layer by layer: the host never holds
more than one tensor of the files, and of that only what its devices need. Layouts and dtypes are
changed on the devices.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from elpo_jax.errors import UsageError
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.safetensors_files import Tensor, listed, open_tensors
from elpo_jax.policy.sharding import fresh_params, param_shapes, param_shardings
from elpo_jax.policy.weight_names import (
    ADAPTERS,
    EMBEDDING,
    HEAD,
    WEIGHTS,
    Layout,
    ParamPath,
    Weight,
)

Params = Any
Shapes = Mapping[ParamPath, jax.ShapeDtypeStruct]

# Integers are quantised weights and float8 needs scales: neither are the parameters.
_DTYPES = ("BF16", "F16", "F32")

# Buffers that old exporters wrote; they follow from config.json.
_IGNORED = ".rotary_emb.inv_freq"

# Rows of two tensors that are compared at once.
_ROWS = 4096


def load_params(folder: Path, model: Decoder, mesh: Mesh, key: jax.Array | None = None) -> Params:
    """The checkpoint's parameters, in `model.compute.param_dtype` and laid out over the mesh.

    Args:
      folder: with `model.safetensors`, or shards and their `model.safetensors.index.json`.
      model: of the checkpoint's architecture.
      mesh: of all devices.
      key: what fresh adapters are drawn with, where the model has some.

    Raises:
      ValueError: there is no key for the adapters.
      UsageError: files are missing or broken, or hold other tensors than the model needs; all of
        them are named, up to a few.
    """
    shapes = traverse_util.flatten_dict(param_shapes(model))
    shardings = traverse_util.flatten_dict(param_shardings(model, mesh))
    params = {}
    if model.compute.lora is not None:
        if key is None:
            raise ValueError("load_params: expected a key for the adapters, got none")
        params = _init_adapters(model, key, mesh)
    try:
        with open_tensors(folder) as tensors:
            problems = _problems(tensors, shapes, model)
            if problems:
                raise UsageError([f"{folder}: {problem}" for problem in problems])
            for path in sorted(shapes.keys() & WEIGHTS.keys(), key=_alike(shapes)):
                params[path] = _load(WEIGHTS[path], tensors, shapes[path], shardings[path])
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError([str(error)]) from None
    return traverse_util.unflatten_dict(params)


def _alike(shapes: Shapes) -> Callable[[ParamPath], Any]:
    """A key to sort paths by: those that share their programs come together."""
    return lambda path: (WEIGHTS[path].layout.axes, shapes[path].shape, path)


def _load(
    weight: Weight,
    tensors: Mapping[str, Tensor],
    shape: jax.ShapeDtypeStruct,
    sharding: NamedSharding,
) -> jax.Array:
    """One parameter; all layers of it where it is stacked."""
    programs = _programs(weight.layout, shape.shape, str(shape.dtype), sharding, weight.is_stacked)
    spec = tuple(sharding.spec)
    if not weight.is_stacked:
        on_devices = _on_devices(tensors[weight.name], weight.layout, sharding, spec)
        return jax.block_until_ready(programs.convert(on_devices))
    stack = programs.empty()
    for layer in range(shape.shape[0]):
        tensor = tensors[weight.of_layer(layer)]
        on_devices = _on_devices(tensor, weight.layout, sharding, spec[1:])
        # Waited for, or tensors would be read faster than they are put in their place.
        stack = jax.block_until_ready(programs.fill(stack, on_devices, np.int32(layer)))
    return stack


class _Programs(NamedTuple):
    """What is compiled for parameters that are alike.

    convert: (tensor) -> parameter.
    empty: () -> parameter, all zeros.
    fill: (parameter, tensor, layer) -> parameter; with that layer replaced. The first is donated.
    """

    convert: Callable[[jax.Array], jax.Array]
    empty: Callable[[], jax.Array]
    fill: Callable[[jax.Array, jax.Array, np.int32], jax.Array]


@lru_cache(maxsize=1)  # each compiled program takes a megabyte or two
def _programs(
    layout: Layout, shape: tuple[int, ...], dtype: str, sharding: NamedSharding, is_stacked: bool
) -> _Programs:
    of_layer = shape[1:] if is_stacked else shape

    def convert(tensor: jax.Array) -> jax.Array:
        return layout.to_ours(tensor, of_layer).astype(dtype)

    def empty() -> jax.Array:
        return jnp.zeros(shape, dtype)

    def fill(stack: jax.Array, tensor: jax.Array, layer: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stack, convert(tensor), layer, 0)

    return _Programs(
        jax.jit(convert, out_shardings=sharding),
        jax.jit(empty, out_shardings=sharding),
        jax.jit(fill, donate_argnums=0, out_shardings=sharding),
    )


def _on_devices(
    tensor: Tensor, layout: Layout, ours: NamedSharding, spec: Sequence[Any]
) -> jax.Array:
    """A tensor as it is in the file, spread as its parameter will be.

    Args:
      tensor: of the file.
      layout: its.
      ours: the parameter's sharding.
      spec: mesh axes of the axes of one layer of it.
    """
    # Of axes of ours that are one in the file, only the slowest is spread: see `sharding.RULES`.
    padded = [*spec, *[None] * len(tensor.shape)]
    theirs = PartitionSpec(*(padded[group[0]] for group in layout.axes))
    read: dict[str, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # there is an axis
        # Devices that hold the same part share one copy.
        if str(index) not in read:
            read[str(index)] = tensor[index]
        return read[str(index)]

    return jax.make_array_from_callback(tensor.shape, NamedSharding(ours.mesh, theirs), part)


def _init_adapters(model: Decoder, key: jax.Array, mesh: Mesh) -> dict[ParamPath, jax.Array]:
    """As `init_params` makes them, without making the rest."""
    shardings = traverse_util.flatten_dict(param_shardings(model, mesh))

    def init(key: jax.Array) -> dict[ParamPath, jax.Array]:
        params = traverse_util.flatten_dict(fresh_params(model, key))
        return {path: value for path, value in params.items() if path in ADAPTERS}

    return jax.jit(init, out_shardings={p: s for p, s in shardings.items() if p in ADAPTERS})(key)


def _problems(tensors: Mapping[str, Tensor], shapes: Shapes, model: Decoder) -> list[str]:
    """A line each for tensors that are missing, too many, of other shapes or of other dtypes."""
    expected = dict(_expected(shapes))
    head = WEIGHTS[HEAD].name
    extra = [name for name in tensors if name not in expected and not name.endswith(_IGNORED)]
    if model.architecture.tie_embeddings and head in extra:
        extra.remove(head)  # some exporters write the embedding twice
        expected[head] = expected[WEIGHTS[EMBEDDING].name]
    there = {name: tensors[name] for name in expected if name in tensors}
    missing = [name for name in expected if name not in tensors]
    misshapen = [
        f"{name}: expected {list(expected[name])}, got {list(tensor.shape)}"
        for name, tensor in there.items()
        if tensor.shape != expected[name]
    ]
    of_dtype = [f"{name} is {t.dtype}" for name, t in there.items() if t.dtype not in _DTYPES]
    found = {
        f"tensors that config.json asks for are missing: {len(missing)}": missing,
        f"tensors that config.json doesn't ask for: {len(extra)}": extra,
        f"tensors of another shape: {len(misshapen)}": misshapen,
        f"tensors of other dtypes than {', '.join(_DTYPES)}: {len(of_dtype)}": of_dtype,
    }
    problems = [f"{what}: {listed(names)}" for what, names in found.items() if names]
    if not problems and head in tensors and model.architecture.tie_embeddings:
        problems = _untied(tensors[head], tensors[WEIGHTS[EMBEDDING].name])
    return problems


def _expected(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor that the parameters are made of."""
    for path, shape in shapes.items():
        if path not in WEIGHTS:
            continue
        weight = WEIGHTS[path]
        if not weight.is_stacked:
            yield weight.name, weight.layout.their_shape(shape.shape)
            continue
        for layer in range(shape.shape[0]):
            yield weight.of_layer(layer), weight.layout.their_shape(shape.shape[1:])


def _untied(head: Tensor, embedding: Tensor) -> list[str]:
    for start in range(0, head.shape[0], _ROWS):
        rows = slice(start, start + _ROWS), slice(None)
        if not np.array_equal(head[rows], embedding[rows]):
            return [
                f"{WEIGHTS[HEAD].name}: expected none or {WEIGHTS[EMBEDDING].name} again, since "
                "config.json has tie_word_embeddings=true; got other numbers"
            ]
    return []
