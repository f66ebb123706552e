"""Numbers that aren't finite stop an update before it is made, and their dump can be replayed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest

from elpo_jax import faults
from elpo_jax.config import (
    Config,
    LoraConfig,
    MeshConfig,
    OptimizerConfig,
    PolicyConfig,
    TrainConfig,
)
from elpo_jax.diagnosis import Replay
from elpo_jax.errors import RunFault, UsageError
from elpo_jax.learner.batch import Row
from elpo_jax.learner.run import POLICY, NonFiniteUpdateError
from elpo_jax.policy.build import make_decoder
from elpo_jax.policy.sharding import init_params, make_mesh
from elpo_jax.replay import main as replay_main
from elpo_jax.sampler.engine import NonFiniteSampleError
from elpo_jax.trainer import make_learner

VOCAB = 16
CONFIG = Config(
    policy=PolicyConfig(
        d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16
    ),
    optimizer=OptimizerConfig(learning_rate=1e30, clip_norm=1e30),
    train=TrainConfig(
        steps=2,
        batch_prompts=3,
        mini_batch_prompts=1,
        micro_batch_rows=2,
        length_buckets=(12,),
        logprob_chunk=4,
    ),
)
MODEL = make_decoder(CONFIG.policy, VOCAB)
MESH = make_mesh(CONFIG.mesh)
KEY = jax.random.key(1)


@pytest.fixture(scope="module", autouse=True)
def kept_programs(tmp_path_factory):
    """A replay compiles what the learner has compiled."""
    with processes.kept_programs(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def absurd():
    """Its first update is finite, and throws the parameters so far out that the second isn't."""
    return make_learner(CONFIG, MODEL, MESH)


def fresh(learner):
    return learner.init(init_params(MODEL, KEY, MESH))


def make_rows(seed=0):
    """Three trees of two rows, a good one and a bad one."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(6):
        length = int(rng.integers(6, 13))
        mask = (np.arange(length) >= 3).astype(np.float32)
        rows.append(
            Row(
                tree=number // 2,
                tokens=rng.integers(0, VOCAB, length).astype(np.int32),
                mask=mask,
                advantages=mask * (1.0 if number % 2 else -1.0),
                elc=0 * mask,
                sampler_log_probs=mask * np.float32(-2.7),
            )
        )
    return rows


def unrewarded_rows():
    return [replace(row, advantages=0 * row.mask) for row in make_rows()]


def failed_update(learner, rows, state=None):
    with pytest.raises(NonFiniteUpdateError) as caught:
        learner.update(state or fresh(learner), rows)
    error = caught.value
    error.labels = [[(f"train/{row // 2}", row % 2) for row in rows] for rows in error.rows]
    error.tasks = sorted({f"train/{row // 2}" for row in error.members})
    return error


def test_an_absurd_learning_rate_stops_at_the_first_update_that_isnt_finite(absurd):
    error = failed_update(absurd, make_rows())
    assert error.kind == POLICY
    assert error.where == {"epoch": 0, "mini_batch": 1}
    assert error.members == [2, 3]
    assert sorted(row for rows in error.rows for row in rows) == [2, 3]
    assert "loss" in error.found["broken"] or "gradient" in error.found["broken"]
    assert int(error.state.step) == 1
    # The state is the one that the first update gave, to the last bit.
    rows = make_rows()
    state, _ = absurd.update(fresh(absurd), [row for row in rows if row.tree == 0])
    jax.tree.map(np.testing.assert_array_equal, error.state, state)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(error.state.params))


def test_parameters_that_would_overflow_are_not_taken_either(absurd):
    """Without anything to learn, weight decay alone multiplies them by 1e28 at each update."""
    error = failed_update(absurd, unrewarded_rows())
    assert error.where == {"epoch": 0, "mini_batch": 1}
    assert error.found["broken"] == ["new parameters"]
    assert error.found["loss"] == error.found["grad_norm"] == 0.0
    assert error.rows == []
    assert error.members == [2, 3]
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(error.state.params))


def test_a_broken_policy_is_seen_even_where_nothing_is_to_be_learnt(absurd):
    state = fresh(absurd)
    kernel = state.params["head"]["kernel"].at[0, 3].set(jnp.inf)
    state = state._replace(params=state.params | {"head": {"kernel": kernel}})
    error = failed_update(absurd, unrewarded_rows(), state)
    assert "update 0: not finite: the log-probabilities before it" in str(error)
    assert error.members == list(range(6))


def dumped(error, folder):
    faults.write(folder, faults.describe(error, 7, CONFIG, VOCAB), error.state)
    return faults.read(folder)


def test_a_dump_is_replayed_to_where_it_arises(absurd, tmp_path):
    error = failed_update(absurd, make_rows())
    folder = tmp_path / "faults" / "step_000007"
    fault = dumped(error, folder)
    assert (fault.kind, fault.step, fault.where) == (POLICY, 7, error.where)
    assert fault.tasks == ["train/1"]
    assert sorted(label for rows in fault.labels for label in rows) == [
        ("train/1", 0),
        ("train/1", 1),
    ]
    for ours, theirs in zip(fault.micro_batches, error.micro_batches, strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    replay = Replay(fault)
    state = faults.read_state(folder, replay.learner.shapes())
    jax.tree.map(np.testing.assert_array_equal, state, error.state)
    stages = {stage.name: stage for stage in replay.stages(state)}
    assert stages["parameters"].broken == stages["old log-probabilities"].broken == 0
    first = next(stage for stage in stages.values() if stage.broken)
    assert first.name in ("log-probabilities", "gradients")
    assert replay.update(state) == str(error)


def test_a_dump_of_adapters_is_replayed_too(tmp_path):
    """Beside parameters that are frozen."""
    config = replace(CONFIG, policy=replace(CONFIG.policy, lora=LoraConfig(rank=2)))
    model = make_decoder(config.policy, VOCAB)
    learner = make_learner(config, model, MESH)
    error = failed_update(learner, make_rows(), learner.init(init_params(model, KEY, MESH)))
    assert int(error.state.step) == 1
    faults.write(tmp_path, faults.describe(error, 7, config, VOCAB), error.state)
    replay = Replay(faults.read(tmp_path))
    state = faults.read_state(tmp_path, replay.learner.shapes())
    jax.tree.map(np.testing.assert_array_equal, state, error.state)
    assert any(stage.broken for stage in replay.stages(state))
    assert replay.update(state) == str(error)


def test_a_dump_of_a_mesh_that_is_not_here_is_replayed_on_one_device(absurd, tmp_path, capsys):
    error = failed_update(absurd, make_rows())
    config = replace(CONFIG, mesh=MeshConfig(data=64))
    faults.write(tmp_path, faults.describe(error, 7, config, VOCAB), error.state)
    with pytest.raises(RunFault, match=r"reproduced; the first is among the "):
        replay_main(["replay", "--dump", str(tmp_path)])
    said = "on one device, since those here don't make up the run's mesh: data=64, fsdp=1, tensor=1"
    assert said in capsys.readouterr().out


def test_a_dump_of_a_broken_advantage_names_its_task(absurd, tmp_path):
    rows = make_rows()
    rows[0].advantages[5] = np.nan  # of the first mini-batch
    error = failed_update(absurd, rows)
    assert error.where == {"epoch": 0, "mini_batch": 0}
    fault = dumped(error, tmp_path / "dump")
    assert (fault.found["loss"], fault.found["broken"]) == ("nan", ["loss", "gradient"])
    replay = Replay(fault)
    state = faults.read_state(tmp_path / "dump", replay.learner.shapes())
    first = next(stage for stage in replay.stages(state) if stage.broken)
    assert (first.name, first.broken) == ("advantages", 1)
    assert first.first == "nan at micro-batch 0, row 0 (train/0, rollout 0), token 5"


def test_a_dump_of_rows_that_were_sampled_is_replayed_too(absurd, tmp_path):
    state = fresh(absurd)
    embedding = state.params["embedding"]["embedding"].at[9].set(jnp.nan)  # of token 9 alone
    state = state._replace(params=state.params | {"embedding": {"embedding": embedding}})
    error = NonFiniteSampleError("sampler: broken", {3: np.array([1])})
    error.rows = {("train/4", 2): np.array([5, 6, 9, 1], np.int32)}
    fault = faults.describe(error, 7, CONFIG, VOCAB)
    faults.write(tmp_path / "dump", fault, state)
    replay = Replay(faults.read(tmp_path / "dump"))
    state = faults.read_state(tmp_path / "dump", replay.learner.shapes())
    stages = {stage.name: stage for stage in replay.stages(state)}
    assert list(stages) == ["parameters", "optimiser state", "log-probabilities", "entropies"]
    assert stages["parameters"].broken == CONFIG.policy.d_model
    assert stages["parameters"].first.startswith("nan at ['embedding']['embedding'][9, 0]")
    assert stages["log-probabilities"].first.startswith(
        "nan at micro-batch 0, row 0 (train/4, rollout 2), token "
    )


@pytest.mark.parametrize("damage", ["fault.json", "micro_batches.npz"])
def test_what_isnt_a_whole_dump_is_refused(absurd, tmp_path, damage):
    dumped(failed_update(absurd, make_rows()), tmp_path / "dump")
    for change in (lambda f: f.write_bytes(f.read_bytes()[:40]), lambda f: f.unlink()):
        change(tmp_path / "dump" / damage)
        with pytest.raises(UsageError, match=r"expected a dump of a fault, elpo_jax\.fault/1"):
            faults.read(tmp_path / "dump")
