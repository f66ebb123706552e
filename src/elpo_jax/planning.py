"""What a run takes of each device, from shapes alone: compiled ahead of time, nothing is allocated.

The programs are those that training runs, lowered for the devices of a mesh, which needn't be
there: a TPU slice is a topology that its compiler knows. The compiler says how much each program
holds besides its arguments; the arguments' share of a device follows from shapes and shardings.
"""

import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from elpo_jax.config import STOP_TOKENS, Config
from elpo_jax.errors import UsageError
from elpo_jax.learner.base import MicroBatch
from elpo_jax.learner.learner import Learner
from elpo_jax.learner.update import make_log_probs
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.sharding import batch_sharding, with_shardings
from elpo_jax.sampler import device
from elpo_jax.trainer import make_learner

GIB = 2**30
# What TPU's compiler says of a program that a device is too small for.
_TOO_LARGE = re.compile(r"RESOURCE_EXHAUSTED.*HLO temporaries \(([\d.]+)([KMG])\)", re.DOTALL)
# Of the devices of a slice, https://cloud.google.com/tpu/docs/system-architecture-tpu-vm
TPU_MEMORY = {
    "TPU v2": 8 * GIB,
    "TPU v3": 16 * GIB,
    "TPU v4": 32 * GIB,
    "TPU v5 lite": 16 * GIB,
    "TPU v5": 95 * GIB,
    "TPU v5p": 95 * GIB,
    "TPU v6 lite": 32 * GIB,
}

# The largest slices of one host. Of v5e and v6e there are machines with 4 chips, which the compiler
# takes a slice to be made of, and with 8: https://cloud.google.com/tpu/docs/v5e
ONE_HOST = "v5e:2x4, v6e:2x4 or v5p:2x2x1"
_CHIPS_OF_A_HOST = {"v5e:2x4": (2, 4, 1), "v6e:2x4": (2, 4, 1)}

LOG_PROBS, GRADIENT, OPTIMISER = "log-probabilities", "gradient", "optimiser"
LEARNING = (LOG_PROBS, GRADIENT, OPTIMISER)
Lower = Callable[[], Any]  # -> what `jax.jit(...).lower` returns


@dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      name: what it does.
      temporary: bytes a device that it holds besides its arguments and what it returns in place.
      seconds: compiling took.
    """

    name: str
    temporary: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a run takes of each device.

    Attributes:
      devices: their kind and number.
      processes: how many run such devices, one a host.
      memory: bytes that one has; None: unknown.
      held: bytes of what stays on a device, by name.
      learning: bytes of what is there during an update only.
      programs: all, each of its largest shape.
      step_flops: arithmetic of one training step over all devices, see `step_flops`.
    """

    devices: str
    processes: int
    memory: int | None
    held: dict[str, int]
    learning: dict[str, int]
    programs: tuple[Program, ...]
    step_flops: dict[str, float]

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment."""
        gradients = sum(self.learning.values())
        return sum(self.held.values()) + max(
            program.temporary + gradients * program.name.startswith((GRADIENT, OPTIMISER))
            for program in self.programs
        )

    @property
    def fits(self) -> bool | None:
        """Whether the peak leaves a tenth of the memory for what no plan knows."""
        return None if self.memory is None else self.peak <= 0.9 * self.memory


def topology_devices(name: str) -> list[Any]:
    """The devices of a TPU slice such as 'v5e:4x4', without having it.

    Raises:
      UsageError: libtpu isn't installed, or doesn't know the slice.
    """
    # Otherwise the library asks the cloud's metadata server who it is, for minutes.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Only its compiler is used: that another process holds the TPU doesn't matter.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(
            ["--topology: needs libtpu, TPU's compiler, found none; pip install -e '.[plan]'"]
        )
    chips = _CHIPS_OF_A_HOST.get(name)
    options = {} if chips is None else {"chips_per_host_bounds": chips}
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:  # plugin and compiler raise what they like
        words = " ".join(str(error).split())[:200]
        raise UsageError(
            [
                f"--topology: expected a TPU slice such as v5e:4x4 or v5p:2x2x2, got {name!r}: "
                f"{words}"
            ]
        ) from None
    return list(topology.devices)


def memory_of(one: Any, count: int) -> int | None:
    """Bytes of a device, of which there are `count`; CPU devices share the machine's; None if
    unknown."""
    if one.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // count
    if one.device_kind in TPU_MEMORY:
        return TPU_MEMORY[one.device_kind]
    try:
        return int(one.memory_stats()["bytes_limit"])
    except Exception:
        return None


def make_plan(
    config: Config, model: Decoder, mesh: Mesh, told: Callable[[str], None] = lambda line: None
) -> Plan:
    """Compiles every program of a run for the mesh's devices.

    Args:
      config: of the run.
      model: its policy, with that mesh.
      mesh: of devices that may be a topology's.
      told: each program, before it is compiled.
    """
    learner = make_learner(config, model, mesh)
    state = learner.shapes()
    lanes, rows = (
        _cache_shapes(model, count, config.episode.max_length, mesh)
        for count in (config.sampler.lanes, config.sampler.rows)
    )
    accumulator = with_shardings(
        jax.eval_shape(learner.programs.zeros, state.params),
        learner.programs.accumulator_shardings,
    )
    programs = [
        *_sampler_programs(config, model, mesh, state.params, lanes, rows),
        *_learner_programs(config, model, mesh, learner, state, accumulator),
    ]
    compiled = []
    for name, lower in programs:
        told(name)
        compiled.append(_compile(name, lower))
    first = mesh.devices.flat[0]
    return Plan(
        devices=f"{mesh.size} x {first.device_kind}",
        processes=len({each.process_index for each in mesh.devices.flat}),
        memory=memory_of(first, mesh.size),
        held={
            "parameters": bytes_of(state.params),
            "optimiser": bytes_of((state.opt_state, state.masters)),
            "cache of the lanes": bytes_of(lanes),
            "cache of the kept rows": bytes_of(rows),
        },
        learning={"gradients": bytes_of(accumulator)},
        programs=tuple(compiled),
        step_flops=step_flops(config, model),
    )


def advice(plan: Plan, config: Config) -> list[str]:
    """What to change where it doesn't fit, the largest share first; nothing where it does."""
    if plan.fits is not False:
        return []
    shares = {
        "parameters": (
            plan.held["parameters"],
            "more of mesh.fsdp or mesh.tensor, policy.param_dtype=bfloat16",
        ),
        "optimiser and gradients": (
            plan.held["optimiser"] + sum(plan.learning.values()),
            "more of mesh.fsdp or mesh.tensor, policy.lora.rank",
        ),
        "cache": (
            plan.held["cache of the lanes"] + plan.held["cache of the kept rows"],
            f"fewer sampler.lanes={config.sampler.lanes} or sampler.rows={config.sampler.rows}, "
            f"a shorter episode.max_length={config.episode.max_length}",
        ),
        "sampling": (
            max((p.temporary for p in plan.programs if not p.name.startswith(LEARNING)), default=0),
            f"fewer sampler.prefill_rows={config.sampler.prefill_rows}, shorter "
            f"sampler.prefill_chunks={config.sampler.prefill_chunks}, more of mesh.tensor",
        ),
        "learning": (
            max((p.temporary for p in plan.programs if p.name.startswith(LEARNING)), default=0),
            f"fewer train.micro_batch_rows={config.train.micro_batch_rows}, a smaller "
            f"train.logprob_chunk={config.train.logprob_chunk}, policy.remat=full, more of "
            "mesh.tensor",
        ),
    }
    order = sorted(shares.items(), key=lambda item: -item[1][0])
    return ["what would help, the largest share first:"] + [
        f"  {name} ({size / GIB:.2f} GiB): {what}" for name, (size, what) in order
    ]


def bytes_of(tree: Any) -> int:
    """Bytes of the arrays' shares on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def step_flops(config: Config, model: Decoder) -> dict[str, float]:
    """Arithmetic of one training step at its most: every rollout as long as an episode may be.

    Two operations a parameter of a product and token, four times head size, heads and tokens seen
    for attention (half of the context on average); a backward pass costs two forward passes, one
    more with `policy.remat` 'full'.
    """
    a = model.architecture
    length = config.episode.max_length
    products = a.num_layers * a.d_model * a.head_dim * (2 * a.num_heads + 2 * a.num_kv_heads)
    products += 3 * a.num_layers * a.d_model * a.mlp_dim + a.d_model * a.vocab_size
    forward = 2.0 * products + 4.0 * a.num_layers * a.num_heads * a.head_dim * length / 2
    tokens = config.train.batch_prompts * config.rollout.budget * length
    passes = {"none": 3, "dots": 3, "full": 4}[model.compute.remat]
    return {
        "rollouts": forward * tokens,
        "old log-probabilities": forward * tokens,
        "updates": passes * forward * tokens * config.train.epochs,
    }


def _cache_shapes(model: Decoder, rows: int, length: int, mesh: Mesh) -> Any:
    shapes = jax.eval_shape(lambda: device.init_cache(model, rows, length))
    return with_shardings(shapes, jax.tree.map(lambda _: device.cache_sharding(mesh), shapes))


def _sampler_programs(
    config: Config, model: Decoder, mesh: Mesh, params: Any, lanes: Any, rows: Any
) -> Iterator[tuple[str, Lower]]:
    """The sampler's programs by name, each of its largest shape."""
    sampler, programs = (
        config.sampler,
        device.compile_programs(model, config.sampler.decode_block, mesh),
    )
    chunk, some = sampler.prefill_chunks[-1], sampler.prefill_rows
    number = np.int32(0)
    by_row = [np.zeros(some, np.int32)] * 3
    yield (
        f"prefill of {some} x {chunk}",
        lambda: programs.prefill.lower(params, lanes, np.zeros((some, chunk), np.int32), *by_row),
    )
    count = sampler.lanes
    whole, real = np.zeros(count, np.int32), np.zeros(count, np.float32)
    identity = np.zeros((count, 2), np.int32)
    state = device.Lanes(whole, whole, whole, identity, real, real, whole)
    key = jax.eval_shape(lambda: jax.random.key(0))
    stops = np.zeros(STOP_TOKENS, np.int32)
    yield (
        f"decode of {count} lanes",
        lambda: programs.decode.lower(params, lanes, state, key, stops, number),
    )
    forked = [np.zeros(sampler.fork_rows, np.int32)] * 2
    yield f"fork of {sampler.fork_rows}", lambda: programs.fork.lower(lanes, rows, *forked)


def _learner_programs(
    config: Config, model: Decoder, mesh: Mesh, learner: Learner, state: Any, accumulator: Any
) -> Iterator[tuple[str, Lower]]:
    """The learner's programs by name, for rows of the largest bucket."""
    size = (config.train.micro_batch_rows, config.train.length_buckets[-1])
    tokens, numbers = np.zeros(size, np.int32), [np.zeros(size, np.float32)] * 5
    log_probs: Any = make_log_probs(model, config.train.logprob_chunk, batch_sharding(mesh))
    programs: Any = learner.programs
    yield (
        f"{LOG_PROBS} of {size[0]} x {size[1]}",
        lambda: log_probs.lower(state.params, tokens, learner.temperature),
    )
    yield (
        f"{GRADIENT} of {size[0]} x {size[1]}",
        lambda: programs.accumulate.lower(
            state.params,
            accumulator,
            MicroBatch(tokens, *numbers),
            learner.temperature,
            learner.bounds,
        ),
    )
    yield OPTIMISER, lambda: programs.apply.lower(state, accumulator)


def _compile(name: str, lower: Lower) -> Program:
    started = time.monotonic()
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _TOO_LARGE.search(str(error))
        if needed is None:
            raise
        size = float(needed[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[needed[2]]
        return Program(name, int(size), time.monotonic() - started)
    memory = compiled.memory_analysis()
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Program(
        name,
        memory.temp_size_in_bytes + max(0, kept),
        time.monotonic() - started,
    )
