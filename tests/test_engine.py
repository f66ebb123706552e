"""The compiled sampler against the cache-free policy, and against itself under other company."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elpo_jax.config import MeshConfig, PolicyConfig, SamplerConfig
from elpo_jax.policy.build import make_decoder
from elpo_jax.policy.sharding import init_params, make_mesh
from elpo_jax.sampler.engine import Chunk, Decoding, Engine, split_segment

POLICY = PolicyConfig(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
SAMPLER = SamplerConfig(
    lanes=5, rows=4, decode_block=6, prefill_rows=2, prefill_chunks=(4, 16), fork_rows=2
)
VOCABULARY, LENGTH = 64, 64
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def model():
    return make_decoder(POLICY, VOCABULARY)


@pytest.fixture(scope="module")
def params(model):
    fresh = init_params(model, jax.random.key(0), make_mesh(MeshConfig()))
    # Logits of a fresh policy are nearly flat; sharper ones make a stricter comparison.
    fresh["head"]["kernel"] = fresh["head"]["kernel"] * 4.0
    return fresh


@pytest.fixture(scope="module")
def engine(model, params):
    """One for all tests: what an earlier one left in its caches must not matter."""
    engine = Engine(model, SAMPLER, LENGTH, make_mesh(MeshConfig()))
    engine.warm_up(params)
    return engine


def prompt(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).astype(np.int32)


def bring(engine, params, lane, tokens):
    """Prefills all tokens but the last, cut as the scheduler cuts a segment."""
    start = 0
    for size in split_segment(len(tokens) - 1, SAMPLER.prefill_chunks):
        engine.prefill(params, [Chunk(lane, start, tokens[start : start + size])])
        start += size


def decoding(lane, tokens, left=6, identity=(3, 1), temperature=1.0, top_p=1.0, top_k=0):
    return Decoding(
        lane, int(tokens[-1]), len(tokens) - 1, left, identity, temperature, top_p, top_k
    )


@pytest.fixture(scope="module")
def logits_of(model, params):
    """The cache-free forward pass: tokens [T] -> logits [T, V]. Rows are padded to one shape."""
    forward = jax.jit(model.apply)

    def logits(tokens):
        row = np.zeros((1, LENGTH), np.int32)
        row[0, : len(tokens)] = tokens
        return forward({"params": params}, row)[0, : len(tokens)]

    return logits


def run(engine, params, work, stops=(), exit_below=1):
    return engine.decode(params, work, KEY, stops, exit_below)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
def test_a_cache_free_forward_pass_reproduces_log_probs_and_entropies(
    engine, params, logits_of, temperature
):
    tokens = prompt(23)
    bring(engine, params, 2, tokens)
    drawn = run(engine, params, [decoding(2, tokens, temperature=temperature)])
    logits = logits_of(np.concatenate([tokens, drawn.tokens[2]]))[22:-1] / temperature
    log_probs = jax.nn.log_softmax(logits)
    picked = log_probs[jnp.arange(6), drawn.tokens[2]]
    entropies = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
    np.testing.assert_allclose(drawn.log_probs[2], picked, atol=2e-5)
    np.testing.assert_allclose(drawn.entropies[2], entropies, atol=2e-5)


def test_temperature_0_is_the_greedy_continuation(engine, params, logits_of):
    tokens = prompt(9)
    bring(engine, params, 0, tokens)
    drawn = run(engine, params, [decoding(0, tokens, temperature=0.0)])
    row = list(tokens)
    for _ in range(6):
        row.append(int(jnp.argmax(logits_of(row)[-1])))
    assert drawn.tokens[0].tolist() == row[9:]


def test_samples_are_the_same_bit_for_bit_in_any_lane_and_company(engine, params):
    tokens = prompt(20)
    bring(engine, params, 0, tokens)
    alone = run(engine, params, [decoding(0, tokens)])

    # Another lane, prefilled beside a mate, decoded among mates and in calls of other sizes.
    others = [prompt(17, seed) for seed in (1, 2, 3)]
    for lane, other in zip((0, 1, 4), others, strict=True):
        bring(engine, params, lane, other)
    first, last = tokens[:16], tokens[16:19]
    engine.prefill(params, [Chunk(3, 0, first), Chunk(2, 0, others[0][:5])])
    engine.prefill(params, [Chunk(2, 5, others[0][5:7]), Chunk(3, 16, last)])
    mates = [
        decoding(lane, other, identity=(9, lane))
        for lane, other in zip((0, 1), others[:2], strict=True)
    ]
    some = run(engine, params, [decoding(3, tokens, left=2), *mates])
    longer = np.concatenate([tokens, some.tokens[3, :2]])
    mate = decoding(4, others[2], identity=(8, 8), top_p=0.5, top_k=3)
    rest = run(engine, params, [mate, decoding(3, longer, left=4)])
    for name in ("tokens", "log_probs", "entropies"):
        whole = getattr(alone, name)[0]
        parts = [getattr(some, name)[3, :2], getattr(rest, name)[3, :4]]
        np.testing.assert_array_equal(whole, np.concatenate(parts), err_msg=name)


def test_another_identity_draws_other_tokens(engine, params):
    tokens = prompt(12)
    bring(engine, params, 0, tokens)
    one = run(engine, params, [decoding(0, tokens, identity=(3, 1))])
    for identity in ((3, 2), (4, 1), (1, 3)):
        other = run(engine, params, [decoding(0, tokens, identity=identity)])
        assert one.tokens[0].tolist() != other.tokens[0].tolist()


def test_forks_continue_as_their_parent_would_have(engine, params):
    tokens = prompt(15)
    bring(engine, params, 1, tokens)
    (kept,) = engine.keep([1])
    parent = run(engine, params, [decoding(1, tokens)])
    bring(engine, params, 0, prompt(15, 5))
    engine.fork([kept, kept], [0, 4])
    forks = run(engine, params, [decoding(0, tokens), decoding(4, tokens, identity=(3, 2))])
    np.testing.assert_array_equal(parent.tokens[1], forks.tokens[0])
    np.testing.assert_array_equal(parent.log_probs[1], forks.log_probs[0])
    assert forks.tokens[4].tolist() != forks.tokens[0].tolist()
    engine.release(kept)


def test_rows_beyond_the_device_are_swapped_out_and_back_bit_for_bit(engine, params):
    prompts = [prompt(10, seed) for seed in range(7)]
    straight = []
    for tokens in prompts:
        bring(engine, params, 0, tokens)
        straight.append(run(engine, params, [decoding(0, tokens)]).tokens[0])
    kept, before = [], engine.counters.swaps_out
    for tokens in prompts:
        bring(engine, params, 0, tokens)
        kept += engine.keep([0])
    assert engine.counters.swaps_out - before == len(prompts) - SAMPLER.rows
    for index in (0, 6, 1, 3, 0):
        engine.fork([kept[index]], [2])
        again = run(engine, params, [decoding(2, prompts[index])])
        np.testing.assert_array_equal(again.tokens[2], straight[index])
    swapped = engine.counters.swaps_out
    for row in kept:
        engine.release(row)
    refilled = engine.keep([0, 1, 2, 3])
    assert engine.counters.swaps_out == swapped, "released rows are free again"
    for row in refilled:
        engine.release(row)


def test_a_stop_token_ends_the_lane_and_is_drawn_but_not_fed(engine, params):
    tokens = prompt(8)
    bring(engine, params, 0, tokens)
    free = run(engine, params, [decoding(0, tokens)])
    stop = int(free.tokens[0, 3])
    first = free.tokens[0].tolist().index(stop)
    drawn = run(engine, params, [decoding(0, tokens), decoding(1, tokens, left=2)], (63, stop))
    assert drawn.counts[0] == first + 1
    assert drawn.stopped[0]
    assert drawn.tokens[0, : first + 1].tolist() == free.tokens[0, : first + 1].tolist()
    assert drawn.counts[1] == min(2, first + 1)
    assert drawn.counts[2:].tolist() == [0, 0, 0]


def test_any_number_of_stop_tokens_is_one_program(engine, params):
    """The first of them that is drawn ends the lane."""
    tokens = prompt(8)
    bring(engine, params, 0, tokens)
    compiled = engine.compiles
    free = run(engine, params, [decoding(0, tokens)]).tokens[0].tolist()
    for places in ([4, 2], [5], [0, 1, 2, 3, 4, 5]):
        stops = [free[place] for place in places]
        drawn = run(engine, params, [decoding(0, tokens)], stops)
        first = min(free.index(stop) for stop in stops)
        assert (drawn.counts[0], drawn.stopped[0]) == (first + 1, True)
    assert engine.compiles == compiled


def test_decode_leaves_early_when_few_lanes_are_left(engine, params):
    tokens = prompt(8)
    for lane in (0, 1):
        bring(engine, params, lane, tokens)
    drawn = run(engine, params, [decoding(0, tokens, left=2), decoding(1, tokens)], exit_below=2)
    assert drawn.steps == 2
    assert drawn.counts[:2].tolist() == [2, 2]


def test_no_setting_and_no_amount_of_work_compiles_after_warm_up(engine, params):
    compiled = engine.compiles
    assert compiled == len(SAMPLER.prefill_chunks) + 1 + 2 + 1 + 1
    for length in (2, 5, 17, 40):
        tokens = prompt(length)
        bring(engine, params, 1, tokens)
        kept = engine.keep([1, 2, 3])
        engine.fork(kept, [0, 2, 4])
        for settings in ({}, {"temperature": 0.3, "top_p": 0.9}, {"top_k": 5, "left": 2}):
            run(engine, params, [decoding(1, tokens, **settings)], stops=(3,), exit_below=1)
        for row in kept:
            engine.release(row)
    assert engine.compiles == compiled


def test_a_broken_policy_is_an_error(engine, params):
    broken = jax.tree.map(lambda leaf: leaf, params)
    broken["final_norm"] = {"scale": params["final_norm"]["scale"] * jnp.nan}
    tokens = prompt(8)
    bring(engine, params, 0, tokens)
    with pytest.raises(FloatingPointError, match=r"task draws \[3\]"):
        run(engine, broken, [decoding(0, tokens)])


@pytest.mark.parametrize(
    ("length", "pieces"),
    [(0, []), (1, [1]), (16, [16]), (17, [16, 1]), (37, [16, 16, 5])],
)
def test_a_segment_is_cut_by_its_length_alone(length, pieces):
    assert split_segment(length, (4, 16)) == pieces
