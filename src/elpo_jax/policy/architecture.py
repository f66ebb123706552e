"""What decoder a policy is, and how it is computed: two values that the model is made of.

An `Architecture` decides the function, and comes from a checkpoint's `config.json` (see
`policy.families`) or from the sizes of the config's `policy` section. A `Compute` only decides how
the function is computed: dtypes, memory, speed.
"""

from dataclasses import dataclass, field

from elpo_jax.config import PolicyConfig
from elpo_jax.policy.rope import Rope


@dataclass(frozen=True)
class Architecture:
    """A pre-norm decoder: RMSNorm, rotary positions, grouped-query attention, gated MLP.

    Attributes:
      vocab_size: rows of the embedding.
      d_model, num_layers, num_heads, num_kv_heads, head_dim, mlp_dim: sizes.
      norm_eps: of every RMSNorm.
      tie_embeddings: the head is the embedding.
      qk_norm: queries and keys of each head are normalised (Qwen3).
      qkv_bias, output_bias, mlp_bias: which products have a bias.
      rope: positions.
      windows: for each layer how many positions a token sees, itself included; 0: all before it.
        Empty: all layers see all.
      usable_vocab: ids from here on only fill the embedding up and are never drawn; 0: none.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    qk_norm: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    rope: Rope = field(default_factory=Rope)
    windows: tuple[int, ...] = ()
    usable_vocab: int = 0


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (https://arxiv.org/abs/2106.09685): W x + alpha / rank * B A x.

    Attributes:
      rank: of the adapters.
      alpha: their weight, times the rank.
      targets: which products have one, by the names of `LORA_TARGETS`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]


# The products that may have an adapter: our name by the checkpoints' name.
LORA_TARGETS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "output",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}

REMAT = ("none", "dots", "full")


@dataclass(frozen=True)
class Compute:
    """How a decoder is computed.

    Attributes:
      dtype: of activations and the KV cache.
      param_dtype: of parameters.
      scan_unroll: layers a scan step of the learner.
      remat: what the learner's backward pass computes again, layer by layer: 'none', 'dots' (all
        but matrix products), 'full' (all but each layer's input).
      attention_block: rows longer than this attend block by block, in memory linear in length.
      lora: adapters beside frozen parameters; None: all parameters are trained.
    """

    dtype: str = "float32"
    param_dtype: str = "float32"
    scan_unroll: int = 1
    remat: str = "none"
    attention_block: int = 512
    lora: Lora | None = None


def compute_of(policy: PolicyConfig) -> Compute:
    """How the config wants its policy computed."""
    lora = None
    if policy.lora.rank:
        lora = Lora(policy.lora.rank, policy.lora.alpha, policy.lora.targets)
    return Compute(
        policy.dtype,
        policy.param_dtype,
        policy.scan_unroll,
        policy.remat,
        policy.attention_block,
        lora,
    )


def own_architecture(policy: PolicyConfig, vocab_size: int) -> Architecture:
    """The architecture of a policy that starts from scratch: Qwen3's, with the config's sizes.

    Args:
      policy: the sizes.
      vocab_size: of the tokenizer.
    """
    return Architecture(
        vocab_size=vocab_size,
        d_model=policy.d_model,
        num_layers=policy.num_layers,
        num_heads=policy.num_heads,
        num_kv_heads=policy.num_kv_heads,
        head_dim=policy.head_dim,
        mlp_dim=policy.mlp_dim,
        norm_eps=policy.norm_eps,
        tie_embeddings=policy.tie_embeddings,
        rope=Rope(policy.rope_theta),
    )
