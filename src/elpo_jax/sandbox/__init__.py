"""Runs Python that nobody vouches for: the policy's.

    caller ──> Sandbox (pool.py) ══ socket ══> zygote (inside/) ──fork──> one snippet
                  ▲ a Result <── output, caps and clocks watched ──┘

A *zygote* is a small Python process that has what snippets import loaded and warm. It forks for
each snippet; the child locks itself in (inside/isolation.py) before it runs a line of it. How
strong the lock is depends on what the kernel lets us do: see `Tier`. The kernel itself is shared,
so this is no place for an attacker who has an exploit for it.
"""

from elpo_jax.sandbox.base import Limits, Result, Snippet, Status, Tier
from elpo_jax.sandbox.pool import Sandbox
from elpo_jax.sandbox.sandboxes import Sandboxes, described

__all__ = ["Limits", "Result", "Sandbox", "Sandboxes", "Snippet", "Status", "Tier", "described"]
