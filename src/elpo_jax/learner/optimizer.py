"""AdamW with warm-up, decay and clipping by the global norm."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from elpo_jax.config import OptimizerConfig


class Optimizer(NamedTuple):
    """The gradient transformation, and the learning rate it uses at its n-th update (from 0)."""

    transform: optax.GradientTransformation
    schedule: optax.Schedule


def make_schedule(config: OptimizerConfig, total_updates: int) -> optax.Schedule:
    """The learning rate over updates.

    Warm-up rises linearly and reaches the full rate at its last update; the first update already
    moves, at 1/warmup_steps of it. 'cosine' and 'linear' then fall to 0 at `total_updates`.

    Args:
      config: `warmup_steps` counts updates.
      total_updates: updates of the whole run; unused by 'constant'.

    Raises:
      ValueError: on an unknown schedule, or one that leaves no update to decay over.
    """
    if config.schedule not in ("constant", "cosine", "linear"):
        raise ValueError(
            f"optimizer.schedule: expected constant, cosine or linear, got {config.schedule!r}"
        )
    if config.warmup_steps < 0:
        raise ValueError(f"optimizer.warmup_steps: expected >= 0, got {config.warmup_steps}")
    decay_updates = total_updates - config.warmup_steps
    if config.schedule != "constant" and decay_updates < 1:
        raise ValueError(
            f"optimizer.warmup_steps: expected fewer than the run's {total_updates} updates with "
            f"schedule {config.schedule!r}, got {config.warmup_steps}"
        )

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        factor = jnp.ones_like(count)
        if config.schedule != "constant":
            progress = jnp.clip((count - config.warmup_steps) / decay_updates, 0.0, 1.0)
            cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            factor = cosine if config.schedule == "cosine" else 1.0 - progress
        if config.warmup_steps:
            factor = factor * jnp.minimum((count + 1.0) / config.warmup_steps, 1.0)
        return config.learning_rate * factor

    return schedule


def make_optimizer(config: OptimizerConfig, total_updates: int) -> Optimizer:
    """AdamW (https://arxiv.org/abs/1711.05101) after clipping by the global norm.

    Weight decay acts on every parameter, norm scales included, as in verl.

    Raises:
      ValueError: on a clip norm that isn't positive, or a bad schedule.
    """
    if not config.clip_norm > 0:
        raise ValueError(f"optimizer.clip_norm: expected > 0, got {config.clip_norm}")
    schedule = make_schedule(config, total_updates)
    transform = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
        ),
    )
    return Optimizer(transform, schedule)
