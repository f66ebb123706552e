"""What makes large policies fit: adapters, half precision, recomputation, chunks of logits."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elpo_jax.checkpoint import Checkpoints, parts_of, state_of
from elpo_jax.config import LoraConfig, MeshConfig, OptimizerConfig, PolicyConfig
from elpo_jax.learner.base import MicroBatch
from elpo_jax.learner.logprobs import token_log_probs, token_log_probs_and_entropies
from elpo_jax.learner.loss import cross_entropy_loss
from elpo_jax.learner.optimizer import make_optimizer
from elpo_jax.learner.partition import merge, split
from elpo_jax.learner.update import make_update
from elpo_jax.policy.build import make_decoder
from elpo_jax.policy.sharding import init_params, make_mesh, param_shardings
from tests.test_attention import array_sizes

VOCABULARY = 24
PLAIN = PolicyConfig(d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=20)
ADAPTED = replace(PLAIN, lora=LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "down_proj")))
HALF = replace(PLAIN, dtype="bfloat16", param_dtype="bfloat16")
MESH = make_mesh(MeshConfig())
ONE = np.float32(1)


def fresh(policy, seed=0):
    model = make_decoder(policy, VOCABULARY, MESH)
    return model, init_params(model, jax.random.key(seed), MESH)


def batch(rows=2, length=9, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, (rows, length)).astype(np.int32)
    mask = np.ones((rows, length), np.float32)
    mask[:, 0] = 0
    return MicroBatch(tokens, mask, mask / mask.sum(), 0 * mask, 0 * mask, 0 * mask)


def programs_of(model, learning_rate=1e-2, **settings):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=learning_rate, **settings), 1)
    shardings = param_shardings(model, MESH)
    return make_update(model, cross_entropy_loss, optimizer, 4, shardings)


def updated(programs, state, count):
    """After `count` updates on the same batch."""
    for _ in range(count):
        accumulator = programs.zeros(state.params)
        accumulator, _ = programs.accumulate(state.params, accumulator, batch(), ONE, None)
        state, applied = programs.apply(state, accumulator)
        assert applied.ok
    return state


def leaves(tree):
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_adapters_begin_as_nothing_and_then_are_their_product():
    (_, base), (model, params) = fresh(PLAIN), fresh(ADAPTED)
    shapes = {path: x.shape for path, x in leaves(split(params)[0]).items()}
    assert shapes == {
        "['layers']['query']['lora_a']": (2, 16, 3),
        "['layers']['query']['lora_b']": (2, 3, 4, 6),
        "['layers']['down']['lora_a']": (2, 20, 3),
        "['layers']['down']['lora_b']": (2, 3, 16),
    }
    tokens = batch().tokens
    plain = make_decoder(PLAIN, VOCABULARY, MESH)
    frozen = jax.tree.map(jnp.copy, {**params, "layers": dict(params["layers"])})
    for name in ("query", "down"):
        frozen["layers"][name] = {"kernel": frozen["layers"][name]["kernel"]}
    assert jax.tree.structure(frozen) == jax.tree.structure(base)
    expected = plain.apply({"params": frozen}, tokens)
    found = model.apply({"params": params}, tokens)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    for name, axes in (("query", "lir,lrhc->lihc"), ("down", "lir,lro->lio")):
        adapter = params["layers"][name]
        adapter["lora_b"] = jax.random.normal(jax.random.key(1), adapter["lora_b"].shape)
        product = jnp.einsum(axes, adapter["lora_a"], adapter["lora_b"])
        frozen["layers"][name]["kernel"] = adapter["kernel"] + 6.0 / 3 * product
    found = model.apply({"params": params}, tokens)
    merged = plain.apply({"params": frozen}, tokens)
    np.testing.assert_allclose(found, merged, atol=2e-5)
    assert not np.allclose(found, expected, atol=1e-2)


def test_only_adapters_are_trained_and_only_they_have_moments_and_gradients():
    model, params = fresh(ADAPTED)
    before = jax.tree.map(np.asarray, params)
    programs = programs_of(model)
    state = programs.init(params)
    adapters = sum(x.size for x in jax.tree.leaves(split(state.params)[0]))
    # Two moments for each, the counts of the two schedules aside.
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) - 2 * adapters <= 2
    gradients = programs.zeros(state.params).gradients
    assert sum(x.size for x in jax.tree.leaves(gradients)) == adapters
    state = updated(programs, state, 3)
    changed = {
        path for path, x in leaves(state.params).items() if (x != leaves(before)[path]).any()
    }
    assert changed == leaves(split(before)[0]).keys()


def test_split_and_merge_are_inverse():
    for policy in (PLAIN, ADAPTED):
        _, params = fresh(policy)
        trained, frozen = split(params)
        again = merge(trained, frozen)
        assert jax.tree.structure(again) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, again, params)
        assert bool(jax.tree.leaves(frozen)) == (policy is ADAPTED)


def test_small_steps_add_up_in_half_precision():
    """Steps of a hundredth of a rounding: without masters not one of them would be felt."""
    model, params = fresh(HALF)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.bfloat16.dtype}
    before = np.asarray(params["head"]["kernel"], np.float32)
    programs = programs_of(model, learning_rate=2e-6, weight_decay=0.0)
    state = updated(programs, programs.init(params), 1)
    assert {x.dtype for x in jax.tree.leaves(state.masters)} == {jnp.float32.dtype}
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.bfloat16.dtype}
    once = np.asarray(state.params["head"]["kernel"], np.float32)
    state = updated(programs, state, 300)
    later = np.asarray(state.params["head"]["kernel"], np.float32)
    large = np.abs(before) > 0.1  # their rounding is 5e-4 and more, a step 2e-6
    assert (once[large] == before[large]).mean() > 0.98
    assert (later[large] != before[large]).mean() > 0.3
    for master, param in zip(
        jax.tree.leaves(state.masters), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_array_equal(master.astype(jnp.bfloat16), param)


def test_a_state_with_masters_comes_back_bit_for_bit(tmp_path):
    model, params = fresh(HALF)
    programs = programs_of(model)
    state = updated(programs, programs.init(params), 2)
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, parts_of(state), {})
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        restored = state_of(checkpoints.restore(parts_of(shapes)).parts)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    ours, theirs = updated(programs, state, 1), updated(programs, restored, 1)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputation_changes_no_gradient(remat):
    gradients = []
    for policy in (PLAIN, replace(PLAIN, remat=remat)):
        model, params = fresh(policy)
        programs = programs_of(model)
        accumulator, _ = programs.accumulate(params, programs.zeros(params), batch(), ONE, None)
        gradients.append(accumulator.gradients)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), *gradients)


def test_full_recomputation_keeps_less_for_the_backward_pass():
    def kept(remat):
        model = make_decoder(replace(PLAIN, remat=remat), VOCABULARY)
        _, params = fresh(PLAIN)
        tokens = jnp.zeros((2, 64), jnp.int32)
        residuals = jax.vjp(lambda p: model.apply({"params": p}, tokens, method="hidden"), params)[
            1
        ]
        return sum(x.size for x in jax.tree.leaves(residuals))

    assert kept("full") < kept("dots") < kept("none")


@pytest.mark.parametrize("of", [token_log_probs, token_log_probs_and_entropies])
def test_log_probs_of_a_large_vocabulary_never_hold_all_logits(of):
    batch_size, length, width, vocabulary, chunk = 2, 64, 4, 50_000, 8

    def total(hidden, head, tokens):
        out = of(lambda h: (h @ head).astype(jnp.float32), hidden, tokens, 1.0, chunk)
        return jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, out))

    program = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(
        jax.ShapeDtypeStruct((batch_size, length, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocabulary), jnp.float32),
        jax.ShapeDtypeStruct((batch_size, length), jnp.int32),
    )
    assert max(array_sizes(program.jaxpr)) == batch_size * chunk * vocabulary
