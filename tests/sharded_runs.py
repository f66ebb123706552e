"""Runs the same training step on several meshes, in a process that has devices for them.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python sharded_runs.py OUT 1x1x1 2x2x2 ...

Meshes are data x fsdp x tensor. The first is the reference: the others take its checkpoint up and
learn from its trees too. OUT gets a pickled dict of what `run_on` found, by mesh; how far each is
from the reference is printed.
"""

import pickle
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from scripted import END_OF_TURN, MAX_LENGTH, ScriptedEnvironment, task

from elpo_jax.algorithms import ALGORITHMS
from elpo_jax.checkpoint import Checkpoints
from elpo_jax.cold_start import make_supervised_learner
from elpo_jax.components import ROLLOUT, Components
from elpo_jax.config import SFTConfig, from_dict
from elpo_jax.interrupt import Interrupts
from elpo_jax.learner.base import MicroBatch
from elpo_jax.learner.batch import trajectory_rows
from elpo_jax.learner.sft import sft_rows
from elpo_jax.policy.build import make_decoder
from elpo_jax.policy.sharding import AXES, make_mesh
from elpo_jax.progress import Display
from elpo_jax.rollout.nodes import elc_nodes
from elpo_jax.sampler.device import Lanes
from elpo_jax.sampler.scheduler import SamplingSettings, Scheduler
from elpo_jax.sandbox import Sandboxes
from elpo_jax.tasks.base import HELD_OUT, TRAIN
from elpo_jax.tasks.files import Files
from elpo_jax.trainer import Trainer
from elpo_jax.training import train
from elpo_jax.validation import validate
from elpo_jax.workdir import WorkDir

VOCABULARY = 32
TASKS = 6
# Numbers that tell arrays apart in a compiled program.
LANES, ROWS, PREFILL_ROWS, BATCH_ROWS = 24, 8, 8, 32
SETTINGS = {
    "policy": {
        "d_model": 32,
        "num_layers": 2,
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 6,
        "mlp_dim": 48,
    },
    "sampler": {
        "lanes": LANES,
        "rows": ROWS,
        "decode_block": 8,
        "prefill_rows": PREFILL_ROWS,
        "prefill_chunks": (16,),
        "fork_rows": 5,
    },
    "episode": {"max_length": MAX_LENGTH, "max_turn_tokens": 10},
    "optimizer": {"learning_rate": 1e-3},
    "train": {
        "batch_prompts": TASKS,
        "mini_batch_prompts": 3,
        "micro_batch_rows": BATCH_ROWS,
        "length_buckets": (MAX_LENGTH,),
        "logprob_chunk": 50,
    },
    "eval": {"tasks": 1},
}
NEVER = SimpleNamespace(check=lambda: None)


def make_components(mesh, **changes):
    """What a trainer needs, on the first devices; tasks and tools are scripted."""
    sizes = [int(size) for size in mesh.split("x")]
    config = from_dict(SETTINGS | changes | {"mesh": dict(zip(AXES, sizes, strict=True))})
    validate(config)
    devices = make_mesh(config.mesh, jax.devices()[: np.prod(sizes)])
    tokenizer = SimpleNamespace(decode=str)
    return Components(
        config=config,
        mesh=devices,
        model=make_decoder(config.policy, VOCABULARY, devices),
        suite=SimpleNamespace(size=lambda split: None, task=lambda split, index: task(index)),
        chat=SimpleNamespace(stop_tokens=(END_OF_TURN,), tokenizer=tokenizer),
        environment=ScriptedEnvironment(),
        files=Files({}, {}, ()),
        corpus=None,
        sandboxes=Sandboxes(config.sandbox),
        indices={TRAIN: None, HELD_OUT: None},
    )


def train_on(mesh, workdir):
    """A whole run of four steps, with a checkpoint at every second one."""
    steps = SETTINGS["train"] | {"steps": 4}
    components = make_components(mesh, train=steps, checkpoint={"every": 2})
    train(components, WorkDir(Path(workdir)), Display(), Interrupts())


def run_on(mesh, reference):
    """One step and more on a mesh.

    Args:
      mesh: such as '2x2x2'.
      reference: (first state, trees of its step) of the reference, None where this is it.

    Returns:
      A dict; arrays are NumPy's, named by their path in the state. And (first state, trees).
    """
    trainer = Trainer(make_components(mesh))
    fresh = trainer.warm_up(trainer.learner.init(trainer.components.init_params()))
    compiles = trainer.compiles
    first = reference[0] if reference else fresh
    restored = [through_checkpoint(first, fresh) for _ in range(3)]
    found = {
        "fresh": arrays(fresh),
        "restored": arrays(restored[0]),
        "restored_as": jax.tree.map(lambda a, b: a.sharding == b.sharding, restored[0], fresh),
    }
    batch = [(draw, task(draw)) for draw in range(TASKS)]
    state, trees, metrics = trainer.step(restored[0], 1, batch, NEVER)
    found |= {
        "steps": steps_of(trees),
        "metrics": metrics,
        "after": arrays(state),
        "layouts": layouts(trainer, state),
    }
    again, _, _ = trainer.step(restored[1], 1, batch, NEVER)
    found["after_again"] = arrays(again)
    found["other_schedule"] = steps_of(other_schedule(trainer, fresh.params))
    if reference:
        trees = reference[1]
    advantages = trainer.algorithm.credit(trees, trainer.config.credit)
    rows = trajectory_rows(trees, advantages, [elc_nodes(tree) for tree in trees])
    found["log_probs"] = trainer.learner.log_probs(fresh.params, rows)
    learnt, found["update"] = trainer.learner.update(restored[2], rows)
    found["learnt"] = arrays(learnt)
    found["learnt_and_back"] = arrays(through_checkpoint(learnt, first))
    found["compiles"] = (compiles, trainer.compiles)
    found["programs"] = programs(trainer, fresh)
    found["cold_start"], found["taught"] = supervised(trainer, fresh.params, trees)
    return found, (fresh, trees)


def supervised(trainer, params, trees):
    """Two updates on demonstrations, whose number divides by no mesh: metrics, and the state."""
    components = trainer.components
    config = replace(components.config, sft=SFTConfig(steps=2))
    learner = make_supervised_learner(config, components.model, components.mesh)
    state, found = learner.init(jax.tree.map(jnp.copy, params)), []
    rows = sft_rows([(tokens, tokens % 2 == 0) for tokens in conversations(trees)])
    for _ in range(2):
        state, metrics = learner.update(state, rows)
        found.append(metrics)
    return found, arrays(state)


def conversations(trees):
    """The tokens of the first rollout of each tree, and of one more."""
    first = [np.concatenate([tree.prompt, *leaf_steps(tree)]) for tree in trees]
    return [*first, first[0][::-1]]


def leaf_steps(tree):
    return [tree.nodes[node].step.tokens for node in tree.path(tree.leaves[0].node)]


def through_checkpoint(state, target):
    """The state, saved from its mesh and restored onto that of the target."""
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder), keep=1) as checkpoints:
        checkpoints.save(0, {"state": state}, {})
        return checkpoints.restore({"state": target}).parts["state"]


def arrays(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def steps_of(trees):
    """(tokens, log-probabilities, entropies) of each node, by task."""
    return {
        tree.task.id: [(n.step.tokens, n.step.log_probs, n.step.entropies) for n in tree.nodes]
        for tree in trees
    }


def other_schedule(trainer, params):
    """The trees of step 1 in other company, order and timing."""
    config, engine = trainer.config, trainer.scheduler.engine
    scheduler = Scheduler(
        engine, ScriptedEnvironment((0.0, 0.004)), config.sampler, config.episode, (END_OF_TURN,)
    )
    trees, _ = scheduler.run(
        params,
        trainer.components.key(ROLLOUT, 1),
        [(draw, task(draw)) for draw in reversed(range(TASKS + 3))],
        lambda tree: ALGORITHMS["elpo"].strategy(tree, config.rollout),
        SamplingSettings(),
    )
    return trees[3:]


def layouts(trainer, state):
    """(shape, shape of the shards, number of different shards) of each array on the devices."""
    engine = trainer.scheduler.engine
    everything = {"state": state, "lanes": engine._lanes, "rows": engine._rows}
    return {
        jax.tree_util.keystr(path): (
            leaf.shape,
            {shard.data.shape for shard in leaf.addressable_shards},
            len({str(shard.index) for shard in leaf.addressable_shards}),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(everything)
    }


def programs(trainer, state):
    """Of each compiled program the shapes of all arrays, as each device has them."""
    engine, learner = trainer.scheduler.engine, trainer.learner
    lanes, rows, params = engine._lanes, engine._rows, state.params

    def ints(*shape):
        return np.zeros(shape, np.int32)

    def floats(*shape):
        return np.zeros(shape, np.float32)

    idle = Lanes(*map(ints, [LANES] * 3), ints(LANES, 2), *map(floats, [LANES] * 2), ints(LANES))
    batch = (BATCH_ROWS, MAX_LENGTH)
    micro_batch = MicroBatch(ints(*batch), *[floats(*batch)] * 5)
    row = engine._programs.read_row(rows, np.int32(0))
    chunk = [ints(PREFILL_ROWS, 16), *map(ints, [PREFILL_ROWS] * 3)]
    one = np.int32(0)
    calls = {
        "prefill": (engine._programs.prefill, params, lanes, *chunk),
        "decode": (engine._programs.decode, params, lanes, idle, jax.random.key(0), one, one),
        "fork": (engine._programs.fork, lanes, rows, ints(5), ints(5)),
        "read_row": (engine._programs.read_row, rows, one),
        "write_row": (engine._programs.write_row, rows, one, jax.device_get(row)),
        "log_probs": (learner._log_probs, params, micro_batch.tokens, learner.temperature),
        "accumulate": (
            learner.programs.accumulate,
            params,
            learner.programs.zeros(params),
            micro_batch,
            learner.temperature,
            learner.bounds,
        ),
    }
    return {name: shapes_in(call.lower(*args).compile()) for name, (call, *args) in calls.items()}


def shapes_in(compiled):
    found = re.findall(r"\b(?:f32|bf16)\[([\d,]+)\]", compiled.as_text())
    return {tuple(map(int, shape.split(","))) for shape in found}


def differences(one, mesh):
    """The largest ones between what two meshes found, in a line."""
    same = [
        name
        for name, steps in one["steps"].items()
        if [step[0].tolist() for step in steps]
        == [step[0].tolist() for step in mesh["steps"][name]]
    ]
    pairs = [
        pair for name in same for pair in zip(one["steps"][name], mesh["steps"][name], strict=True)
    ]
    log_probs, entropies = (
        max(np.abs(ours[part] - theirs[part]).max() for ours, theirs in pairs) for part in (1, 2)
    )
    ours, theirs = one["update"], mesh["update"]
    loss = abs(ours["policy/loss"] - theirs["policy/loss"])
    norm = abs(theirs["policy/grad_norm"] / ours["policy/grad_norm"] - 1)
    names = [name for name in one["learnt"] if name.startswith(".params")]
    apart, moved = (
        np.concatenate([(a["learnt"][name] - b[name]).ravel() for name in names])
        for a, b in ((mesh, one["learnt"]), (one, one["fresh"]))
    )
    share = np.linalg.norm(apart) / np.linalg.norm(moved)
    return (
        f"{len(same)} of {len(one['steps'])} trees with the same ids; log-probabilities "
        f"{log_probs:.1e}, entropies {entropies:.1e}, loss {loss:.1e}, gradient's norm {norm:.1e} "
        f"of itself, parameters {np.abs(apart).max():.1e} ({share:.1e} of the movement)"
    )


if __name__ == "__main__":
    out, *meshes = sys.argv[1:]
    results, reference = {}, None
    for name in meshes:
        results[name], own = run_on(name, reference)
        reference = reference or own
        if name != meshes[0]:
            print(f"{name}: {differences(results[meshes[0]], results[name])}", flush=True)
    Path(out).write_bytes(pickle.dumps(results))
