"""Meshes, and the rules that map logical axes of the policy to mesh axes."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from elpo_jax.config import MeshConfig
from elpo_jax.errors import UsageError

Params = Any  # a nested dict of arrays, as `Decoder.init` returns it under 'params'

AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. Rows of a batch (and lanes and rows of the KV cache) are spread over
# data and fsdp; parameters over fsdp along the model axis and over tensor along heads, MLP and
# vocabulary.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
    ("time", None),
    ("kept_time", "tensor"),
    ("layers", None),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("lora", None),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes data, fsdp and tensor over the given devices (all there are, by default).

    Raises:
      UsageError: when the sizes' product isn't the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    config = filled(config, len(devices))
    sizes = (config.data, config.fsdp, config.tensor)
    if math.prod(sizes) != len(devices):
        data, rest = divmod(len(devices), config.fsdp * config.tensor)
        near = f"{len(devices)} * 1 * 1" if rest else f"{data} * {config.fsdp} * {config.tensor}"
        raise UsageError(
            [
                f"mesh: expected mesh.data * mesh.fsdp * mesh.tensor = {len(devices)}, the number "
                f"of devices, got {' * '.join(map(str, sizes))}; {near} would do"
            ]
        )
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def filled(config: MeshConfig, devices: int) -> MeshConfig:
    """The config with the devices that the other axes leave in place of a 0, at least 1."""
    given = math.prod(size for size in asdict(config).values() if size)
    sizes = {axis: size or max(1, devices // given) for axis, size in asdict(config).items()}
    return MeshConfig(**sizes)


def spec(*names: str | None) -> PartitionSpec:
    """The mesh axes of an array whose axes have these logical names."""
    return nn.logical_to_mesh_axes(names, RULES)


def constrain(x: jax.Array, mesh: Mesh | None, *names: str | None) -> jax.Array:
    """Lays an intermediate array out by the logical names of its axes; without a mesh, as it comes.

    Explicit, because Flax's `with_logical_constraint` does nothing, without a word, wherever the
    mesh or the rules aren't in force.
    """
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(*names)))


def gather_fsdp(params: Params, shardings: Params) -> Params:
    """Parameters whole along fsdp, still spread over tensor.

    Args:
      params: inside a compiled program.
      shardings: of `param_shardings`.
    """

    def gather(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        axes = [None if axis == "fsdp" else axis for axis in sharding.spec]
        return jax.lax.with_sharding_constraint(
            x, NamedSharding(sharding.mesh, PartitionSpec(*axes))
        )

    return jax.tree.map(gather, params, shardings)


def param_shapes(model: nn.Module) -> Params:
    """A `jax.ShapeDtypeStruct` for each parameter."""
    return nn.unbox(_boxed_shapes(model))


def placed_shapes(model: nn.Module, mesh: Mesh) -> Params:
    """As `param_shapes`, with shardings: what a checkpoint is restored to."""
    return with_shardings(param_shapes(model), param_shardings(model, mesh))


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A pytree of `jax.ShapeDtypeStruct` with the shardings of an equal one."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _boxed_shapes(model: nn.Module) -> Params:
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def param_shardings(model: nn.Module, mesh: Mesh) -> Params:
    """A NamedSharding for each parameter."""
    boxed = _boxed_shapes(model)
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)


def init_params(model: nn.Module, key: jax.Array, mesh: Mesh) -> Params:
    """Freshly initialised parameters, each made on the devices that hold it."""

    init = jax.jit(lambda key: fresh_params(model, key), out_shardings=param_shardings(model, mesh))
    return init(key)


def fresh_params(model: nn.Module, key: jax.Array) -> Params:
    """As `init_params`, for use in a compiled program."""
    return nn.unbox(model.init(key, jnp.zeros((1, 1), jnp.int32))["params"])


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays whose first axis is the batch."""
    return NamedSharding(mesh, spec("batch"))
