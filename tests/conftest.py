"""Settings of every test: the CPU back end, one device, and no silent broadcasting of ranks.

Warnings are errors (setup.cfg). Several devices slow single-device tests down by a third, so tests
of meshes start their own process with `XLA_FLAGS=--xla_force_host_platform_device_count=N`.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # read when jax is imported

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples every time, and no deadlines: a busy machine must not fail a test.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")
