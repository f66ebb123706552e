"""Meshes, and the rules that map logical axes of the policy to mesh axes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from elpo_jax.config import MeshConfig
from elpo_jax.policy.model import Decoder

Params = Any  # a nested dict of arrays, as `Decoder.init` returns it under 'params'

AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. Rows of a batch (and lanes and rows of the KV cache) are spread over
# data and fsdp; parameters over fsdp along the model axis and over tensor along heads, MLP and
# vocabulary.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
    ("time", None),
    ("layers", None),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
)


def make_mesh(config: MeshConfig) -> Mesh:
    """A mesh with axes data, fsdp and tensor over all devices.

    Raises:
      ValueError: when the sizes' product isn't the number of devices.
    """
    sizes = (config.data, config.fsdp, config.tensor)
    devices = jax.devices()
    if int(np.prod(sizes)) != len(devices):
        raise ValueError(
            f"config.mesh: expected data * fsdp * tensor = {len(devices)} (the devices), "
            f"got {' * '.join(map(str, sizes))} = {int(np.prod(sizes))}"
        )
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def spec(*names: str | None) -> PartitionSpec:
    """The mesh axes of an array whose axes have these logical names."""
    return nn.logical_to_mesh_axes(names, RULES)


def param_shardings(model: Decoder, mesh: Mesh) -> Params:
    """A NamedSharding for each parameter."""
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)


def init_params(model: Decoder, key: jax.Array, mesh: Mesh) -> Params:
    """Freshly initialised parameters, each made on the devices that hold it."""

    def init(key: jax.Array) -> Params:
        return nn.unbox(model.init(key, jnp.zeros((1, 1), jnp.int32))["params"])

    return jax.jit(init, out_shardings=param_shardings(model, mesh))(key)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays whose first axis is the batch."""
    return NamedSharding(mesh, spec("batch"))
