"""Sandboxes of every tier that this machine allows, for tests."""

from contextlib import contextmanager

from elpo_jax.config import SandboxConfig
from elpo_jax.errors import UsageError
from elpo_jax.sandbox import Sandbox, Tier

TIERS = (Tier.T1, Tier.T2, Tier.T3)
LIMITS = SandboxConfig(
    workers=1,
    cpu_seconds=1,
    wall_seconds=3,
    memory_mb=256,
    output_kb=64,
    disk_mb=4,
    files=50,
)


def why_not(tier, config=LIMITS):
    """Why a tier doesn't hold here; '' if it does."""
    sandbox = Sandbox(replace_tier(config, tier), preload=())
    try:
        sandbox.start()
    except UsageError as error:
        return str(error)
    finally:
        sandbox.close()
    return ""


def replace_tier(config, tier):
    return SandboxConfig(**{**vars(config), "tier": str(tier)})


@contextmanager
def opened(tier, preload=("numpy",), config=LIMITS):
    sandbox = Sandbox(replace_tier(config, tier), preload=preload)
    try:
        yield sandbox
    finally:
        sandbox.close()
