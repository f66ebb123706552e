"""The compiled update: gradients, the optimiser, its guard, the learner's driver, meshes."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from elpo_jax.config import OptimizerConfig, TrainConfig
from elpo_jax.learner.base import LossSettings
from elpo_jax.learner.batch import Row, make_micro_batches, token_weights
from elpo_jax.learner.learner import Learner
from elpo_jax.learner.optimizer import make_optimizer
from elpo_jax.learner.run import NonFiniteUpdateError, run_update
from elpo_jax.learner.sft import SupervisedLearner, sft_rows
from elpo_jax.learner.surrogate import ClipBounds

VOCAB = 13


class Averager(nn.Module):
    """Stands in for the decoder and compiles much faster: causal means mix the time steps."""

    def setup(self):
        normal = nn.initializers.normal(0.4)
        embed = nn.with_logical_partitioning(normal, ("vocab", "embed"))
        head = nn.with_logical_partitioning(normal, ("embed", "vocab"))
        self.embedding = nn.Embed(VOCAB, 8, embedding_init=embed)
        self.head = nn.Dense(VOCAB, kernel_init=head, use_bias=False)

    def hidden(self, tokens):
        x = self.embedding(tokens)
        counts = jnp.arange(1.0, tokens.shape[1] + 1)[None, :, None]
        return x + jnp.tanh(jnp.cumsum(x, axis=1) / counts)

    def logits(self, hidden):
        return self.head(hidden)

    def __call__(self, tokens):
        return self.logits(self.hidden(tokens))


MODEL = Averager()
BOUNDS = ClipBounds(*(np.float32(x) for x in (0.2, 0.315, 0.115, 20.0)))
ONE = np.float32(1.0)
RATE = OptimizerConfig(learning_rate=1e-2)
TRAIN = TrainConfig(
    mini_batch_prompts=2, epochs=2, micro_batch_rows=4, length_buckets=(12,), logprob_chunk=4
)
# One learner for all tests: compiling its programs is most of their time.
LEARNER = Learner(MODEL, make_optimizer(RATE, 1), TRAIN, LossSettings())


@pytest.fixture(scope="module")
def params():
    return nn.unbox(MODEL.init(jax.random.key(3), jnp.zeros((1, 1), jnp.int32))["params"])


def _copy(tree):
    return jax.tree.map(jnp.copy, tree)


def _assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def _rows(groups=(3, 2, 4), seed=0):
    """Random rows of 5 to 12 tokens, two of prompt, some environment tokens in between."""
    rng = np.random.default_rng(seed)
    rows = []
    for tree, size in enumerate(groups):
        for _ in range(size):
            length = int(rng.integers(5, 13))
            mask = (rng.random(length) < 0.7).astype(np.float32)
            mask[:2], mask[2] = 0, 1
            rows.append(
                Row(
                    tree=tree,
                    tokens=rng.integers(0, VOCAB, length).astype(np.int32),
                    mask=mask,
                    advantages=mask * np.float32(rng.normal()),
                    elc=mask * (np.arange(length) > 4).astype(np.float32),
                    sampler_log_probs=mask * np.float32(-2.5),
                )
            )
    return rows


def _micro_batches(params, rows, micro_rows=4):
    """Micro-batches whose old log-probabilities are off by enough for clips to act."""
    noise = np.random.default_rng(1).normal(size=(len(rows), 12)).astype(np.float32)
    log_probs, _ = LEARNER.log_probs(params, rows)
    old = [p + 0.6 * off[: len(p)] for p, off in zip(log_probs, noise, strict=True)]
    weights = token_weights(rows, "seq-mean-token-mean")
    return make_micro_batches(rows, weights, old, (12,), micro_rows)


def _accumulate(params, micro_batches):
    accumulator, statistics = LEARNER.programs.zeros(params), []
    for micro_batch in micro_batches:
        accumulator, new = LEARNER.programs.accumulate(
            params, accumulator, micro_batch, ONE, BOUNDS
        )
        statistics.append(new)
    return accumulator, statistics


def _total(statistics, name):
    return sum(float(new[name]) for new in statistics)


def test_accumulation_equals_one_big_batch(params):
    rows = _rows((10, 4, 16))
    many, many_statistics = _accumulate(params, _micro_batches(params, rows))
    (big,) = _micro_batches(params, rows, micro_rows=30)
    one, one_statistics = _accumulate(params, [big])
    assert many.loss == pytest.approx(float(one.loss), rel=1e-6)
    norm = float(optax.tree.norm(one.gradients))
    assert norm > 0.01
    difference = jax.tree.map(jnp.subtract, many.gradients, one.gradients)
    assert float(optax.tree.norm(difference)) < 1e-6 * norm
    clipped = [f"clipped_{side}_{where}" for side in ("low", "high") for where in ("elc", "plain")]
    for name in ("tokens", "elc_tokens", *clipped):
        assert _total(many_statistics, name) == _total(one_statistics, name) > 0
    assert _total(many_statistics, "kl_old") == pytest.approx(
        _total(one_statistics, "kl_old"), rel=1e-5
    )


def test_loss_and_gradient_agree_with_a_plain_computation(params):
    """All logits at once, no chunks, no accumulation, a loop over rows."""
    rows = _rows((2,))
    (batch,) = _micro_batches(params, rows)

    def plain(params):
        total = 0.0
        for i, row in enumerate(rows):
            log_p = jax.nn.log_softmax(MODEL.apply({"params": params}, row.tokens[None])[0])
            terms = []
            for t in np.flatnonzero(row.mask):
                r = jnp.exp(log_p[t - 1, row.tokens[t]] - batch.old_log_probs[i, t])
                low = 0.8 - 0.115 * row.elc[t]
                a = row.advantages[t]
                terms.append(jnp.minimum(r * a, jnp.clip(r, low, 1.315) * a))
            total += sum(terms) / len(terms)
        return -total / 2

    value, gradients = jax.jit(jax.value_and_grad(plain))(params)
    accumulator, _ = _accumulate(params, [batch])
    assert accumulator.loss == pytest.approx(float(value), rel=1e-5)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6),
        accumulator.gradients,
        gradients,
    )


def test_apply_is_clipped_adamw(params):
    """The first AdamW step by hand: m̂ = g, v̂ = g², so each entry moves by the rate and decays."""
    state = LEARNER.programs.init(_copy(params))
    accumulator, _ = _accumulate(params, _micro_batches(params, _rows()))
    gradients = jax.tree.map(np.array, accumulator.gradients)
    norm = math.sqrt(
        sum(float((g.astype(np.float64) ** 2).sum()) for g in jax.tree.leaves(gradients))
    )
    state, applied = LEARNER.programs.apply(state, accumulator)
    assert bool(applied.ok)
    assert int(state.step) == 1
    assert applied.grad_norm == pytest.approx(norm, rel=1e-5)
    assert applied.learning_rate == pytest.approx(1e-2)

    def expected(p, g):
        g = g * min(1.0, 1.0 / norm)
        return p - 1e-2 * (g / (np.abs(g) + 1e-8) + 0.01 * p)

    jax.tree.map(
        lambda new, p, g: np.testing.assert_allclose(new, expected(p, g), rtol=1e-3, atol=1e-5),
        state.params,
        params,
        gradients,
    )


@pytest.mark.parametrize("broken", ["loss", "gradients"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_changes_on_a_non_finite_update(params, broken, value):
    state = LEARNER.programs.init(_copy(params))
    before = _copy(state)
    accumulator, _ = _accumulate(params, _micro_batches(params, _rows()))
    bad = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(value), getattr(accumulator, broken))
    state, applied = LEARNER.programs.apply(state, accumulator._replace(**{broken: bad}))
    assert not applied.ok
    _assert_same(state, before)


def test_nan_raises_with_the_state_intact(params):
    state = LEARNER.programs.init(_copy(params))
    state, *_ = run_update(LEARNER.programs, state, _micro_batches(params, _rows()), ONE, BOUNDS)
    before = _copy(state)
    batches = _micro_batches(params, _rows())
    batches[0].old_log_probs[0, 3] = np.nan
    with pytest.raises(
        FloatingPointError, match=r"update 1: .* loss nan and gradient norm nan"
    ) as e:
        run_update(LEARNER.programs, state, batches, ONE, BOUNDS)
    _assert_same(e.value.state, before)


def test_learner_on_a_batch(params):
    state = LEARNER.warm_up(LEARNER.init(_copy(params)))
    _assert_same(state.params, params)
    assert int(state.step) == 0
    compiled = LEARNER.compiled_programs()
    assert compiled["log_probs"] == compiled["zeros"] == compiled["apply"] == 1

    rows = _rows()
    log_probs, entropies = LEARNER.log_probs(params, rows)
    state, metrics = LEARNER.update(state, rows)
    assert LEARNER.compiled_programs() == compiled  # nothing compiles after the warm-up
    assert int(state.step) == 4  # trees 0 and 1, tree 2; twice
    policy = [row.mask > 0 for row in rows]
    flat = np.concatenate([e[m] for e, m in zip(entropies, policy, strict=True)])
    assert metrics["policy/entropy"] == pytest.approx(flat.mean(), rel=1e-5)
    off = np.concatenate([p[m] for p, m in zip(log_probs, policy, strict=True)]) + 2.5
    assert metrics["policy/sampler_max_diff"] == pytest.approx(np.abs(off).max(), rel=1e-5)
    assert metrics["policy/sampler_kl"] == pytest.approx((np.exp(off) - 1 - off).mean(), rel=1e-4)
    assert metrics["policy/trained_rows_frac"] == 1.0
    assert metrics["policy/kl_old"] > 0

    wild = [replace(row, sampler_log_probs=row.sampler_log_probs - 1e4) for row in rows]
    _, metrics = LEARNER.update(state, wild)
    assert metrics["policy/sampler_kl"] == pytest.approx(np.exp(20) - 21)
    assert metrics["policy/ratio_max"] > 1
    assert metrics["optimizer/learning_rate"] == pytest.approx(1e-2)
    assert all(math.isfinite(value) for value in metrics.values())


def test_before_the_first_update_the_ratio_is_one(params):
    rows = _rows()
    old, _ = LEARNER.log_probs(params, rows)
    weights = token_weights(rows, "seq-mean-token-mean")
    accumulator, statistics = _accumulate(params, make_micro_batches(rows, weights, old, (12,), 4))
    assert max(float(new["ratio_max"]) for new in statistics) == pytest.approx(1.0, abs=1e-5)
    assert _total(statistics, "kl_old") == pytest.approx(0.0, abs=1e-6)
    assert _total(statistics, "clipped_high_plain") == 0.0
    assert _total(statistics, "clipped_low_plain") == 0.0
    # So the loss is minus the weighted sum of the advantages.
    expected = -sum(float(w @ row.advantages) for w, row in zip(weights, rows, strict=True))
    assert accumulator.loss == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_learning_raises_what_was_good(params):
    rows = [
        replace(row, advantages=row.mask * np.float32(sign))
        for row, sign in zip(_rows((2,)), (1.0, -1.0), strict=True)
    ]
    before, _ = LEARNER.log_probs(params, rows)
    state, _ = LEARNER.update(LEARNER.init(_copy(params)), rows)
    after, _ = LEARNER.log_probs(state.params, rows)
    gains = [(a - b)[row.mask > 0].sum() for a, b, row in zip(after, before, rows, strict=True)]
    assert gains[0] > 0.1
    assert gains[1] < -0.1


def test_rows_without_advantage_count_but_cost_nothing(params):
    """Leaving them out of the passes gives the update that including them would have given."""
    rows = _rows((3, 2))
    rows[1] = replace(rows[1], advantages=0 * rows[1].mask)
    state, metrics = LEARNER.update(LEARNER.init(_copy(params)), rows)
    assert metrics["policy/trained_rows_frac"] == pytest.approx(0.8)

    old, _ = LEARNER.log_probs(params, rows)
    expected = LEARNER.programs.init(_copy(params))
    for _ in range(2):
        batches = make_micro_batches(
            rows, token_weights(rows, "seq-mean-token-mean"), old, (12,), 4
        )
        expected, *_ = run_update(LEARNER.programs, expected, batches, ONE, BOUNDS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, expected.params
    )

    nothing = [replace(row, advantages=0 * row.mask) for row in rows]
    _, metrics = LEARNER.update(LEARNER.init(_copy(params)), nothing)
    assert metrics["policy/trained_rows_frac"] == metrics["policy/grad_norm"] == 0.0


def test_updates_repeat_bit_for_bit(params):
    first, _ = LEARNER.update(LEARNER.init(_copy(params)), _rows())
    second, _ = LEARNER.update(LEARNER.init(_copy(params)), _rows())
    _assert_same(first, second)


def test_learner_names_the_broken_update(params):
    rows = _rows()
    rows[-1] = replace(rows[-1], advantages=np.float32(np.nan) * rows[-1].mask)
    with pytest.raises(NonFiniteUpdateError, match="update 1: "):
        LEARNER.update(LEARNER.init(_copy(params)), rows)


def test_bad_learner_settings_are_refused():
    optimizer, settings = make_optimizer(RATE, 1), LossSettings()
    with pytest.raises(ValueError, match="temperature: expected > 0, got 0"):
        Learner(MODEL, optimizer, TRAIN, settings, temperature=0.0)
    with pytest.raises(ValueError, match="expected >= 1, got 0 and 2"):
        Learner(MODEL, optimizer, replace(TRAIN, mini_batch_prompts=0), settings)
    with pytest.raises(ValueError, match="expected ascending lengths"):
        Learner(MODEL, optimizer, replace(TRAIN, length_buckets=()), settings)
    with pytest.raises(ValueError, match="response_limit: expected > 0"):
        Learner(MODEL, optimizer, TRAIN, LossSettings(aggregation="seq-mean-token-sum-norm"))


def test_no_rows_are_refused(params):
    with pytest.raises(ValueError, match=r"rows: expected .* at least one tree, got none"):
        LEARNER.update(LEARNER.init(_copy(params)), [])


def test_supervised_learning(params):
    """The loss is the mean over the batch's assistant tokens, and falls; shapes are fixed."""
    buckets = replace(TRAIN, length_buckets=(8, 12))
    learner = SupervisedLearner(MODEL, make_optimizer(RATE, 30), buckets)
    demonstrations = _rows()
    rows = sft_rows([(row.tokens, row.mask > 0) for row in demonstrations])
    state = learner.warm_up(learner.init(_copy(params)))
    compiled = learner.compiled_programs()
    losses = []
    for _ in range(30):
        state, metrics = learner.update(state, rows)
        losses.append(metrics["sft/loss"])
    assert learner.compiled_programs() == compiled == {"zeros": 1, "accumulate": 2, "apply": 1}
    log_probs, _ = LEARNER.log_probs(params, demonstrations)
    flat = np.concatenate([p[row.mask > 0] for p, row in zip(log_probs, rows, strict=True)])
    assert losses[0] == pytest.approx(-flat.mean(), rel=1e-5)
    assert losses[-1] < 0.7 * losses[0]
    assert metrics["sft/tokens"] == len(flat)


@pytest.mark.parametrize(
    ("tokens", "is_policy", "message"),
    [
        ([1, 2, 3], [True, True], r"demonstration 0: expected .* got \(3,\) and \(2,\)"),
        ([1, 2, 3], [True, False, False], "demonstration 0: .* of its 3 tokens, got none"),
        ([], [], "demonstration 0: .* of its 0 tokens, got none"),
    ],
)
def test_bad_demonstrations_are_refused(tokens, is_policy, message):
    with pytest.raises(ValueError, match=message):
        sft_rows([(np.array(tokens), np.array(is_policy))])


_ON_A_MESH = """
import sys
import jax, numpy as np
sys.path.insert(0, {tests!r})
import test_update as t
from elpo_jax.config import MeshConfig
from elpo_jax.policy.sharding import batch_sharding, make_mesh, param_shardings

mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=1))
shardings = param_shardings(t.MODEL, mesh)
with jax.set_mesh(mesh):
    learner = t.Learner(t.MODEL, t.make_optimizer(t.RATE, 1), t.TRAIN, t.LossSettings(),
                        param_shardings=shardings, batch_sharding=batch_sharding(mesh))
    with np.load({params!r}) as saved:
        flat = [saved[name] for name in saved.files]
    params = jax.tree.unflatten(jax.tree.structure(shardings), flat)
    state = learner.warm_up(learner.init(jax.device_put(params, shardings)))
    compiled = learner.compiled_programs()
    state, metrics = learner.update(state, t._rows())
    assert learner.compiled_programs() == compiled, (compiled, learner.compiled_programs())
for tree in (state.params, state.opt_state[1][0].mu, state.opt_state[1][0].nu):
    assert jax.tree.map(lambda x: x.sharding, tree) == shardings
assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.params))
print(metrics["policy/loss"])
np.savez({result!r}, *map(np.asarray, jax.tree.leaves(state.params)))
"""


def test_learner_on_a_mesh_of_four_devices(params, tmp_path):
    """Sharded over data and fsdp it learns the same, keeps its layout and compiles no more."""
    expected, metrics = LEARNER.update(LEARNER.init(_copy(params)), _rows())
    start, end = str(tmp_path / "start.npz"), str(tmp_path / "end.npz")
    np.savez(start, *map(np.asarray, jax.tree.leaves(params)))
    script = _ON_A_MESH.format(tests=os.path.dirname(__file__), params=start, result=end)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(metrics["policy/loss"], abs=1e-4)
    with np.load(end) as result:
        for name, leaf in zip(result.files, jax.tree.leaves(expected.params), strict=True):
            np.testing.assert_allclose(result[name], leaf, atol=2e-4)
