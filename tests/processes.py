"""Runs of `elpo_jax.train` in processes of their own: started, disturbed, compared bit for bit."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from elpo_jax.metrics import deterministic, read

ROOT = Path(__file__).parents[1]

# A small policy after a short cold start; its episodes still have calls, failures and branches.
LEARNING = {
    "policy.d_model": 64,
    "policy.num_layers": 2,
    "policy.head_dim": 16,
    "policy.num_heads": 2,
    "policy.num_kv_heads": 1,
    "policy.mlp_dim": 128,
    "sampler.lanes": 32,
    "sampler.rows": 16,
    "sampler.prefill_chunks": "32",
    "episode.max_length": 208,
    "episode.max_turn_tokens": 32,
    "episode.spare_calls": 2,
    "rollout.budget": 8,
    "sft.steps": 400,
    "sft.detours": 0.0,
    "sft.batch": 16,
    "sft.optimizer.learning_rate": 4e-3,
    "train.steps": 6,
    "train.batch_prompts": 24,
    "train.mini_batch_prompts": 12,
    "train.micro_batch_rows": 8,
    "train.length_buckets": "208",
    "train.logprob_chunk": 64,
    "eval.tasks": 16,
    "eval.every": 2,
    "checkpoint.every": 2,
    "optimizer.learning_rate": 1e-4,
}

# The smallest run that has every phase. It solves nothing, so only weight decay moves its policy,
# by 1 % an update.
TINY = {
    "policy.d_model": 32,
    "policy.num_layers": 1,
    "policy.head_dim": 16,
    "policy.num_heads": 2,
    "policy.num_kv_heads": 1,
    "policy.mlp_dim": 64,
    "sampler.lanes": 8,
    "sampler.rows": 8,
    "sampler.prefill_rows": 8,
    "sampler.prefill_chunks": "32",
    "sampler.fork_rows": 8,
    "episode.max_length": 208,
    "episode.max_turn_tokens": 16,
    "rollout.budget": 4,
    "sft.steps": 20,
    "sft.detours": 0.0,
    "sft.batch": 4,
    "sft.optimizer.warmup_steps": 0,
    "train.steps": 4,
    "train.batch_prompts": 2,
    "train.mini_batch_prompts": 1,
    "train.micro_batch_rows": 4,
    "train.length_buckets": "208",
    "train.logprob_chunk": 64,
    "eval.tasks": 4,
    "eval.every": 2,
    "checkpoint.every": 1,
    "optimizer.learning_rate": 0.1,
    "optimizer.weight_decay": 0.1,
}

# `elpo_jax.train`, but for a file that says which phase of which step it is in.
ANNOUNCING = """
import itertools, os, runpy
from elpo_jax.learner.learner import Learner
from elpo_jax.learner.sft import SupervisedLearner
from elpo_jax.trainer import Trainer

def announce(owner, name, phase):
    call, count = getattr(owner, name), itertools.count(1)
    def announced(*arguments):
        with open(os.environ["PHASES"], "a") as file:
            print(phase, next(count), file=file)
        return call(*arguments)
    setattr(owner, name, announced)

announce(SupervisedLearner, "update", "cold start")
announce(Trainer, "warm_up", "compilation")
announce(Trainer, "_roll_out", "rollout")
announce(Learner, "update", "update")
announce(Trainer, "evaluate", "evaluation")
runpy.run_module("elpo_jax.train", run_name="__main__", alter_sys=True)
"""


def flags(settings):
    """The experiment and these settings of it, as an entry point's arguments."""
    keys = (f"--config.{key}={value}" for key, value in settings.items())
    return ["--config", str(ROOT / "experiments" / "sci.py"), *keys]


def command(settings, workdir, prelude=""):
    """`prelude` is code that runs first."""
    return [
        *(sys.executable, "-c", prelude + ANNOUNCING, *flags(settings)),
        *("--workdir", str(workdir)),
    ]


def environment(compiled, **more):
    """Of a process that keeps its compiled programs in the folder `compiled`."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT / "src"),
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        **more,
    }


@contextmanager
def kept_programs(folder):
    """What this process compiles is kept there, and read from there."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def phases(workdir):
    """A file with a line for each phase that the newest process has begun."""
    return workdir.with_suffix(".phases")


def has_begun(workdir, phase):
    file = phases(workdir)
    return file.exists() and f"{phase}\n" in file.read_text()


def start(settings, workdir, compiled, prelude=""):
    phases(workdir).unlink(missing_ok=True)
    return subprocess.Popen(
        command(settings, workdir, prelude),
        cwd=ROOT,
        env=environment(compiled, PHASES=str(phases(workdir))),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, status=0):
    """Its output, once it has ended with this status."""
    try:
        output, _ = process.communicate(timeout=1800)
    finally:
        process.kill()
    assert process.returncode == status, output
    return output


def wait_for(condition, process, what):
    deadline = time.monotonic() + 1800
    while not condition():
        if time.monotonic() > deadline:
            process.kill()
        assert process.poll() is None, f"ended before {what}:\n{process.stdout.read()}"
        time.sleep(0.002)


def rows(workdir):
    file = workdir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def checkpoints(workdir):
    folder = workdir / "checkpoints"
    return {f.name for f in folder.iterdir()} if folder.exists() else set()


def is_writing(workdir):
    """A checkpoint is under its temporary name."""
    return any("tmp" in name for name in checkpoints(workdir))


def garble(checkpoint):
    """Flips a bit of its largest file of parameters."""
    file = max(
        (file for file in (checkpoint / "params").rglob("*") if file.is_file()),
        key=lambda file: file.stat().st_size,
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def outcome(workdir):
    """Everything that must not differ: metrics, trees, the newest checkpoint's arrays."""
    metrics = [deterministic(row) for row in read(workdir / "metrics.jsonl")]
    trees = {file.name: file.read_bytes() for file in (workdir / "trees").iterdir()}
    return metrics, trees, arrays_of(workdir)


def arrays_of(workdir):
    script = (
        "import sys, jax, numpy as np, orbax.checkpoint as ocp\n"
        "reader = ocp.StandardCheckpointer()\n"
        "tree = {p: reader.restore(f'{sys.argv[1]}/{p}') for p in ('params', 'optimizer')}\n"
        "leaves = jax.tree_util.tree_leaves_with_path(tree)\n"
        "np.savez(sys.argv[2], **{jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves})\n"
    )
    newest = max((workdir / "checkpoints").iterdir(), key=lambda f: int(f.name))
    file = workdir.with_suffix(".npz")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(newest), str(file)],
        check=True,
        capture_output=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    with np.load(file) as content:
        return dict(content)


def assert_same(one, other):
    metrics, trees, arrays = one
    assert metrics == other[0]
    assert trees == other[1]
    assert arrays.keys() == other[2].keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, other[2][name], err_msg=name)
