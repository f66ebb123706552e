"""The policy: a Flax decoder as pure functions of its parameters.

Pre-norm blocks with RMSNorm, rotary positions, grouped-query attention and a gated MLP. What sets
the families apart (Qwen3's normalised queries and keys, Qwen2's biases, Llama's positions) are
fields of one `Architecture`. Layers share one scanned `Block`, so parameters under 'layers' have a
leading axis L.

A block comes in two halves, `qkv` and `finish`: what happens between them is the caller's. The
learner attends over the rows it was given (`__call__`), the sampler over its KV cache.

Axes: B batch, T time, L layers, H query heads, K kv heads, G = H / K, D model, C head size, V
vocabulary.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from elpo_jax.policy.architecture import LORA_TARGETS, Architecture, Compute, Lora
from elpo_jax.policy.attention import attend
from elpo_jax.policy.rope import Rope
from elpo_jax.policy.sharding import constrain

NO_WINDOW = np.iinfo(np.int32).max


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    eps: float
    param_dtype: str
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.ones, (self.axis_name,))
        scale = self.param("scale", init, (x.shape[-1],), self.param_dtype)
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + scale.shape)
        return (normed * scale).astype(x.dtype)


class Linear(nn.Module):
    """A matrix product.

    Attributes:
      inputs: the kernel's leading logical axes with their sizes: the last axes of the input, which
        are contracted.
      outputs: its other axes, which the result gets instead.
      dtype: of the product's factors.
      param_dtype: of the parameters.
      bias: whether one is added.
      lora: an adapter beside the kernel.
      result_dtype: of the product; None: `dtype`.
    """

    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]
    dtype: str
    param_dtype: str
    bias: bool = False
    lora: Lora | None = None
    result_dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        names, sizes = zip(*self.inputs, *self.outputs, strict=True)
        count = len(self.inputs)
        init = nn.initializers.lecun_normal(range(count), range(count, len(sizes)))
        kernel = self._param("kernel", init, names, sizes)
        # Two plain matrices: XLA's gradient of the same product over [B, T, D] takes 1.7 times as
        # long on CPU.
        fan_in = math.prod(sizes[:count])
        rows = x.astype(self.dtype).reshape(-1, fan_in)
        product = self._product(rows, kernel.reshape(fan_in, -1))
        if self.lora is not None:
            product = product + self._adapter(rows, self.lora)
        if self.bias:
            bias = self._param("bias", nn.initializers.zeros, names[count:], sizes[count:])
            product = product + bias.astype(product.dtype).reshape(1, -1)
        return product.reshape(*x.shape[: x.ndim - count], *sizes[count:])

    def _param(self, name: str, init: Any, names: Any, sizes: Any) -> jax.Array:
        boxed = nn.with_logical_partitioning(init, tuple(names))
        return self.param(name, boxed, tuple(sizes), self.param_dtype)

    def _product(self, rows: jax.Array, kernel: jax.Array) -> jax.Array:
        kernel = kernel.astype(self.dtype)
        if self.result_dtype is None:
            return rows @ kernel
        return jnp.matmul(rows, kernel, preferred_element_type=jnp.dtype(self.result_dtype))

    def _adapter(self, rows: jax.Array, lora: Lora) -> jax.Array:
        """alpha / rank * B A x; B begins as 0, and the product with it."""
        (in_names, in_sizes), (out_names, out_sizes) = (
            zip(*axes, strict=True) for axes in (self.inputs, self.outputs)
        )
        down_init = nn.initializers.lecun_normal(range(len(in_sizes)), (len(in_sizes),))
        down = self._param("lora_a", down_init, (*in_names, "lora"), (*in_sizes, lora.rank))
        up = self._param(
            "lora_b", nn.initializers.zeros, ("lora", *out_names), (lora.rank, *out_sizes)
        )
        inner = self._product(rows, down.reshape(-1, lora.rank))
        return self._product(inner, up.reshape(lora.rank, -1)) * (lora.alpha / lora.rank)


def rotate(x: jax.Array, positions: jax.Array, rope: Rope) -> jax.Array:
    """Turns each pair (i, C/2 + i) of a head by its position: the half-split layout.

    Args:
      x: [..., T, heads, C].
      positions: int32 [..., T].
      rope: frequencies and factor.
    """
    size = x.shape[-1]
    frequencies = jnp.asarray(rope.frequencies(size))
    angles = positions[..., None].astype(jnp.float32) * frequencies.reshape(
        (1,) * positions.ndim + (-1,)
    )
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    if rope.attention_factor != 1.0:
        cos, sin = cos * rope.attention_factor, sin * rope.attention_factor
    first, second = x[..., : size // 2].astype(jnp.float32), x[..., size // 2 :].astype(jnp.float32)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


class Block(nn.Module):
    """One layer; for the fields see `Decoder`."""

    architecture: Architecture
    compute: Compute
    mesh: Mesh | None = None

    def setup(self) -> None:
        a = self.architecture
        self.attention_norm = self._norm("embed")
        width, mlp = ("embed", a.d_model), ("mlp", a.mlp_dim)
        heads, kv_heads = ("heads", a.num_heads), ("kv_heads", a.num_kv_heads)
        size = ("head_dim", a.head_dim)
        self.query = self._linear("query", [width], [heads, size], a.qkv_bias)
        self.key = self._linear("key", [width], [kv_heads, size], a.qkv_bias)
        self.value = self._linear("value", [width], [kv_heads, size], a.qkv_bias)
        if a.qk_norm:
            self.query_norm = self._norm("head_dim")
            self.key_norm = self._norm("head_dim")
        self.output = self._linear("output", [heads, size], [width], a.output_bias)
        self.mlp_norm = self._norm("embed")
        self.gate = self._linear("gate", [width], [mlp], a.mlp_bias)
        self.up = self._linear("up", [width], [mlp], a.mlp_bias)
        self.down = self._linear("down", [mlp], [width], a.mlp_bias)

    def _norm(self, axis_name: str) -> RMSNorm:
        return RMSNorm(self.architecture.norm_eps, self.compute.param_dtype, axis_name)

    def _linear(
        self,
        name: str,
        inputs: list[tuple[str, int]],
        outputs: list[tuple[str, int]],
        bias: bool,
    ) -> Linear:
        c, lora = self.compute, self.compute.lora
        if lora is not None and name not in [LORA_TARGETS[target] for target in lora.targets]:
            lora = None
        return Linear(tuple(inputs), tuple(outputs), c.dtype, c.param_dtype, bias, lora)

    def qkv(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [B, T, D], positions int32 [B, T] -> q [B, T, H, C], k and v [B, T, K, C]."""
        normed = self.attention_norm(x)
        q, k = self.query(normed), self.key(normed)
        if self.architecture.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        rope = self.architecture.rope
        return rotate(q, positions, rope), rotate(k, positions, rope), self.value(normed)

    def finish(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Residual x [B, T, D] and attention's context [B, T, H, C] -> [B, T, D]."""
        x = x + self.output(context)
        normed = self.mlp_norm(x)
        x = x + self.down(nn.silu(self.gate(normed)) * self.up(normed))
        return constrain(x, self.mesh, "batch", "time", None)

    def __call__(
        self, x: jax.Array, positions: jax.Array, window: jax.Array | None
    ) -> tuple[jax.Array, None]:
        x = constrain(self._kept(x), self.mesh, "batch", "time", None)
        q, k, v = self.qkv(x, positions)
        x = self.finish(x, attend(q, k, v, self.compute.attention_block, window))
        return self._kept(x), None

    def _kept(self, x: jax.Array) -> jax.Array:
        """What the backward pass keeps of a layer, spread over tensor as well, by time.

        Long rows would fill every device of that axis otherwise
        (https://arxiv.org/abs/2205.05198, 4.2.2).
        """
        if self.mesh is None or x.shape[1] % self.mesh.shape["tensor"]:
            return x
        return constrain(x, self.mesh, "batch", "kept_time", None)


class Decoder(nn.Module):
    """Tokens in, hidden states and logits out.

    Attributes:
      architecture: which function of its parameters it is.
      compute: in which dtypes and in how much memory.
      mesh: where its activations are laid out: rows over data and fsdp, heads, MLP and vocabulary
        over tensor. Without one they lie as the compiler likes.
    """

    architecture: Architecture
    compute: Compute
    mesh: Mesh | None = None

    def setup(self) -> None:
        a, c = self.architecture, self.compute
        self.embedding = nn.Embed(
            a.vocab_size,
            a.d_model,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            embedding_init=nn.with_logical_partitioning(
                nn.initializers.normal(a.d_model**-0.5), ("vocab", "embed")
            ),
        )
        self.layers = nn.scan(
            _rematerialized(c.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0 if any(a.windows) else nn.broadcast),
            length=a.num_layers,
            unroll=c.scan_unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(a, c, self.mesh)
        self.final_norm = RMSNorm(a.norm_eps, c.param_dtype, "embed")
        if not a.tie_embeddings:
            width, vocab = ("embed", a.d_model), ("vocab", a.vocab_size)
            self.head = Linear((width,), (vocab,), c.dtype, c.param_dtype, result_dtype="float32")

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int32 [B, T] -> [B, T, D]."""
        # Whole along fsdp first: rows of a table that is spread both ways can't be looked up apart.
        table = constrain(self.embedding.embedding, self.mesh, "vocab", None)
        x = jnp.take(table.astype(self.compute.dtype), tokens, axis=0)
        return constrain(x, self.mesh, "batch", "time", None)

    def hidden(self, tokens: jax.Array) -> jax.Array:
        """Hidden states of whole rows: int32 [B, T] at positions 0..T-1 -> [B, T, D].

        Attention is causal, so what follows a row's end (padding) doesn't reach its tokens.
        """
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x, _ = self.layers(self.embed(tokens), positions, windows(self.architecture))
        return x

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V], the lowest number for ids that only fill the vocabulary."""
        a, normed = self.architecture, self.final_norm(hidden)
        if a.tie_embeddings:
            table = self.embedding.embedding.astype(self.compute.dtype)
            logits = jnp.matmul(normed, table.T, preferred_element_type=jnp.float32)
        else:
            logits = self.head(normed)
        if 0 < a.usable_vocab < a.vocab_size:
            usable = jnp.arange(a.vocab_size) < a.usable_vocab
            usable = usable.reshape((1,) * (logits.ndim - 1) + usable.shape)
            logits = jnp.where(usable, logits, jnp.finfo(jnp.float32).min)
        return constrain(logits, self.mesh, "batch", *[None] * (logits.ndim - 2), "vocab")

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """int32 [B, T] -> float32 logits [B, T, V] of the tokens that follow."""
        return self.logits(self.hidden(tokens))


def windows(architecture: Architecture) -> jax.Array | None:
    """How many positions a token of each layer sees: int32 [L]; None where all layers see all."""
    if not any(architecture.windows):
        return None
    return jnp.array([window or NO_WINDOW for window in architecture.windows], jnp.int32)


def _rematerialized(remat: str) -> type[Block]:
    """The block whose backward pass computes anew what `Compute.remat` says."""
    if remat == "none":
        return Block
    policies = jax.checkpoint_policies
    policy = {"dots": policies.dots_with_no_batch_dims_saveable, "full": None}[remat]
    # In a scan nothing can merge the two computations.
    return nn.remat(Block, policy=policy, prevent_cse=False)
