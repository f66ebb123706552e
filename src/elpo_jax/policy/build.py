"""The decoder that a config asks for: a checkpoint's, or one that starts from scratch."""

from pathlib import Path

from jax.sharding import Mesh

from elpo_jax.config import PolicyConfig
from elpo_jax.errors import UsageError
from elpo_jax.policy.architecture import Architecture, compute_of, own_architecture
from elpo_jax.policy.checkpoint_folder import CONFIG
from elpo_jax.policy.families import architecture_of, read_config
from elpo_jax.policy.model import Decoder


def make_decoder(policy: PolicyConfig, vocab_size: int, mesh: Mesh | None = None) -> Decoder:
    """The module; its parameters are `policy.checkpoint`'s or fresh ones.

    Args:
      policy: the config's section.
      vocab_size: ids that the tokenizer has.
      mesh: where its activations are laid out.

    Raises:
      UsageError: the checkpoint can't be read, isn't supported, or has fewer ids.
    """
    return Decoder(make_architecture(policy, vocab_size), compute_of(policy), mesh)


def make_architecture(policy: PolicyConfig, vocab_size: int) -> Architecture:
    """As `make_decoder`, of the architecture alone."""
    if not policy.checkpoint:
        return own_architecture(policy, vocab_size)
    folder = Path(policy.checkpoint)
    try:
        config = read_config(folder)
    except ValueError as error:  # names the file
        raise UsageError([f"policy.checkpoint: {error}"]) from None
    try:
        architecture = architecture_of(config, vocab_size)
    except ValueError as error:
        raise UsageError([f"policy.checkpoint: {folder / CONFIG}: {error}"]) from None
    if architecture.vocab_size < vocab_size:
        raise UsageError(
            [
                f"policy.checkpoint: {folder}: expected at least the {vocab_size} ids of its "
                f"tokenizer in vocab_size, got {architecture.vocab_size}"
            ]
        )
    return architecture
