"""The policy: a Flax decoder of the Qwen3 shape as pure functions of its parameters.

Pre-norm blocks with RMSNorm, rotary positions, grouped-query attention with normalised queries and
keys, and a SwiGLU MLP (Qwen3 technical report, https://arxiv.org/abs/2505.09388). Layers share one
scanned `Block`, so parameters under 'layers' have a leading axis L.

A block comes in two halves, `qkv` and `finish`: what happens between them is the caller's. The
learner attends over the rows it was given (`__call__`), the sampler over its KV cache.

Axes: B batch, T time, L layers, H query heads, K kv heads, G = H / K, D model, C head size, V
vocabulary.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from elpo_jax.config import PolicyConfig
from elpo_jax.policy.sharding import constrain

MIN_QUERY_BLOCK = 64
MAX_QUERY_BLOCKS = 8  # they are unrolled, so their number is compile time


def _as_last_axis(vector: jax.Array, rank: int) -> jax.Array:
    return vector.reshape((1,) * (rank - 1) + vector.shape)


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
        return (normed * _as_last_axis(scale.astype(jnp.float32), x.ndim)).astype(x.dtype)


class Linear(nn.Module):
    """A matrix product without bias.

    Attributes:
      inputs: the kernel's leading logical axes with their sizes: the last axes of the input, which
        are contracted.
      outputs: its other axes, which the result gets instead.
      dtype: of the product.
      param_dtype: of the kernel.
    """

    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        names, sizes = zip(*self.inputs, *self.outputs, strict=True)
        count = len(self.inputs)
        init = nn.initializers.lecun_normal(range(count), range(count, len(sizes)))
        kernel = self.param(
            "kernel", nn.with_logical_partitioning(init, names), sizes, self.param_dtype
        )
        # Two plain matrices: XLA's gradient of the same product over [B, T, D] takes 1.7 times as
        # long on CPU.
        fan_in = math.prod(sizes[:count])
        rows = x.astype(self.dtype).reshape(-1, fan_in)
        product = rows @ kernel.astype(self.dtype).reshape(fan_in, -1)
        return product.reshape(*x.shape[: x.ndim - count], *sizes[count:])


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding in the half-split layout (https://arxiv.org/abs/2104.09864).

    Args:
      x: [..., T, heads, C].
      positions: int32 [..., T].
      theta: base of the frequencies.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None].astype(jnp.float32) * _as_last_axis(
        frequencies, positions.ndim + 1
    )
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention of each token over itself and its past.

    Queries are taken in blocks, each against the keys up to its end: the masked half of the scores
    is mostly never computed. One batched product a query head, since XLA's CPU products over
    grouped heads take twice as long.

    Args:
      q: [B, T, H, C].
      k, v: [B, T, K, C].

    Returns:
      [B, T, H, C] in q's dtype; softmax in float32.
    """
    length, heads, size = q.shape[1:]
    k, v = (jnp.repeat(x.swapaxes(1, 2), heads // x.shape[2], axis=1) for x in (k, v))
    q = q.swapaxes(1, 2)  # [B, H, T, C]
    visible = jnp.tril(jnp.ones((length, length), bool))[None, None]
    block = max(MIN_QUERY_BLOCK, -(-length // MAX_QUERY_BLOCKS))
    context = []
    for start in range(0, length, block):
        end = min(start + block, length)
        scores = jnp.einsum(
            "bhtc,bhsc->bhts",
            q[:, :, start:end],
            k[:, :, :end],
            preferred_element_type=jnp.float32,
        )
        masked = jnp.where(
            visible[:, :, start:end, :end], scores * size**-0.5, jnp.finfo(jnp.float32).min
        )
        weights = jax.nn.softmax(masked, axis=-1).astype(v.dtype)
        context.append(jnp.einsum("bhts,bhsc->bhtc", weights, v[:, :, :end]))
    return jnp.concatenate(context, axis=2).swapaxes(1, 2)


class Block(nn.Module):
    """One layer; for `mesh` see `Decoder`."""

    config: PolicyConfig
    mesh: Mesh | None = None

    def setup(self) -> None:
        c = self.config
        self.attention_norm = self._norm("embed")
        width, mlp = ("embed", c.d_model), ("mlp", c.mlp_dim)
        heads, kv_heads = ("heads", c.num_heads), ("kv_heads", c.num_kv_heads)
        size = ("head_dim", c.head_dim)
        self.query = self._linear([width], [heads, size])
        self.key = self._linear([width], [kv_heads, size])
        self.value = self._linear([width], [kv_heads, size])
        self.query_norm = self._norm("head_dim")
        self.key_norm = self._norm("head_dim")
        self.output = self._linear([heads, size], [width])
        self.mlp_norm = self._norm("embed")
        self.gate = self._linear([width], [mlp])
        self.up = self._linear([width], [mlp])
        self.down = self._linear([mlp], [width])

    def _norm(self, axis_name: str) -> RMSNorm:
        return RMSNorm(self.config.norm_eps, self.config.param_dtype, axis_name)

    def _linear(self, inputs: list[tuple[str, int]], outputs: list[tuple[str, int]]) -> Linear:
        return Linear(tuple(inputs), tuple(outputs), self.config.dtype, self.config.param_dtype)

    def qkv(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [B, T, D], positions int32 [B, T] -> q [B, T, H, C], k and v [B, T, K, C]."""
        normed = self.attention_norm(x)
        q = rotate(self.query_norm(self.query(normed)), positions, self.config.rope_theta)
        k = rotate(self.key_norm(self.key(normed)), positions, self.config.rope_theta)
        return q, k, self.value(normed)

    def finish(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Residual x [B, T, D] and attention's context [B, T, H, C] -> [B, T, D]."""
        x = x + self.output(context)
        normed = self.mlp_norm(x)
        x = x + self.down(nn.silu(self.gate(normed)) * self.up(normed))
        return constrain(x, self.mesh, "batch", "time", None)

    def __call__(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, None]:
        return self.finish(x, causal_attention(*self.qkv(x, positions))), None


class Decoder(nn.Module):
    """Tokens in, hidden states and logits out.

    Attributes:
      config: its shape.
      vocab_size: V.
      mesh: where its activations are laid out: rows over data and fsdp, heads, MLP and vocabulary
        over tensor. Without one they lie as the compiler likes.
    """

    config: PolicyConfig
    vocab_size: int
    mesh: Mesh | None = None

    def setup(self) -> None:
        c = self.config
        self.embedding = nn.Embed(
            self.vocab_size,
            c.d_model,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            embedding_init=nn.with_logical_partitioning(
                nn.initializers.normal(c.d_model**-0.5), ("vocab", "embed")
            ),
        )
        self.layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.num_layers,
            unroll=c.scan_unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.mesh)
        self.final_norm = RMSNorm(c.norm_eps, c.param_dtype, "embed")
        if not c.tie_embeddings:
            width, vocab = ("embed", c.d_model), ("vocab", self.vocab_size)
            self.head = Linear((width,), (vocab,), c.dtype, c.param_dtype)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int32 [B, T] -> [B, T, D]."""
        # Whole along fsdp first: rows of a table that is spread both ways can't be looked up apart.
        table = constrain(self.embedding.embedding, self.mesh, "vocab", None)
        x = jnp.take(table.astype(self.config.dtype), tokens, axis=0)
        return constrain(x, self.mesh, "batch", "time", None)

    def hidden(self, tokens: jax.Array) -> jax.Array:
        """Hidden states of whole rows: int32 [B, T] at positions 0..T-1 -> [B, T, D].

        Attention is causal, so what follows a row's end (padding) doesn't reach its tokens.
        """
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x, _ = self.layers(self.embed(tokens), positions)
        return x

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V]."""
        head = self.embedding.attend if self.config.tie_embeddings else self.head
        logits = head(self.final_norm(hidden)).astype(jnp.float32)
        return constrain(logits, self.mesh, "batch", *[None] * (logits.ndim - 2), "vocab")

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """int32 [B, T] -> float32 logits [B, T, V] of the tokens that follow."""
        return self.logits(self.hidden(tokens))
