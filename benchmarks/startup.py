"""Start-up: from a fresh process to the end of its first training step, and what it compiled.

`python -m benchmarks.startup EXPERIMENT [--config.a.b=v ...]` is the process that is timed; it
prints its phases as JSON. The cold start isn't part of it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import Row

REPOSITORY = Path(__file__).parent.parent
EXPERIMENT = "experiments/sci.py"
COMPILATION = "/jax/core/compile/backend_compile_duration"
# JAX keeps only what took longer than a second to compile, unless told otherwise.
CACHE_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def startup(repetitions: int, experiment: str = EXPERIMENT, flags: Sequence[str] = ()) -> list[Row]:
    """Rows of the seconds to the first step's end, and of the numbers of programs compiled.

    Fresh processes run in turn without JAX's persistent compilation cache and with one that an
    earlier process has filled; the product itself sets none up.
    """
    cold, cached = [], []
    with tempfile.TemporaryDirectory() as cache:
        cache_on = {"JAX_COMPILATION_CACHE_DIR": cache, **CACHE_ALL}
        _measure(experiment, flags, cache_on)
        for _ in range(repetitions):
            cold.append(_measure(experiment, flags, {}))
            cached.append(_measure(experiment, flags, cache_on))
    last = cold[-1]
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in last["phases"].items())
    spent = f"{last['compilations']} compilations took {last['compilation_seconds']:.1f} s"
    return [
        Row(
            "start-up to the first step's end",
            "s",
            tuple(run["seconds"] for run in cold),
            "compilation cache on",
            tuple(run["seconds"] for run in cached),
            f"{phases}; {spent}",
        ),
        Row(
            "programs of sampler and learner",
            "programs",
            tuple(float(run["programs"]) for run in cold),
            note=f"{last['late_programs']} of them after warm-up",
        ),
    ]


def _measure(experiment: str, flags: Sequence[str], variables: dict[str, str]) -> dict:
    """One process; seconds count from before it is made."""
    environment = {
        name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
    }
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.startup", experiment, *flags],
        cwd=REPOSITORY,
        env=environment | variables,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - started
    return {"seconds": seconds, **json.loads(process.stdout.splitlines()[-1])}


def main(experiment: str, flags: Sequence[str]) -> None:
    """Builds the experiment's trainer, warms it up and takes one step."""
    phases: dict[str, float] = {}
    started = time.perf_counter()

    def phase(name: str) -> None:
        phases[name] = time.perf_counter() - started - sum(phases.values())

    import jax

    compilations: list[float] = []

    def count(event: str, seconds: float, **_: object) -> None:
        if event == COMPILATION:
            compilations.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(count)
    from elpo_jax.cli import parse
    from elpo_jax.components import build
    from elpo_jax.data_order import TrainingTasks
    from elpo_jax.interrupt import Interrupts
    from elpo_jax.tasks.base import TRAIN
    from elpo_jax.trainer import Trainer

    phase("imports")
    devices = f"--config.mesh.data={jax.device_count()}"
    config, _ = parse(["startup", "--config", experiment, devices, *flags], [])
    components = build(config)
    trainer = Trainer(components)
    state = trainer.learner.init(components.init_params())
    jax.block_until_ready(state)
    phase("building")
    state = trainer.warm_up(state)
    phase("warm-up")
    programs = trainer.compiles
    with Interrupts() as interrupts:
        tasks = TrainingTasks(components.suite, components.indices[TRAIN], config.seed)
        batch = tasks.take(config.train.batch_prompts)
        state, _, _ = trainer.step(state, 1, batch, interrupts)
    jax.block_until_ready(state)
    phase("first step")
    print(
        json.dumps(
            {
                "phases": phases,
                "programs": trainer.compiles,
                "late_programs": trainer.compiles - programs,
                "compilations": len(compilations),
                "compilation_seconds": sum(compilations),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
