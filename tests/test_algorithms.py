"""The table's rows, and what a training step makes of the trees that each of them grows."""

import jax.numpy as jnp
import numpy as np
from runs import searched_tree
from worlds import answer_step, call_step, drive, empty_tree, rollout

from elpo_jax.algorithms import ALGORITHMS, loss_settings
from elpo_jax.components import build
from elpo_jax.config import LossConfig, RolloutConfig, from_dict
from elpo_jax.interrupt import Interrupts
from elpo_jax.learner.base import SEQ_MEAN_TOKEN_MEAN, LossSettings
from elpo_jax.rollout.tree import ROOT
from elpo_jax.sampler.jobs import Summary
from elpo_jax.trainer import Trainer

SMALL = {
    "policy": {"d_model": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 32},
    "sampler": {"lanes": 2, "rows": 2, "fork_rows": 2},
    "sft": {"steps": 0},
    "eval": {"tasks": 1},
}


def independent_tree():
    """Three whole rollouts; the first is right."""
    tree = empty_tree()
    for ordinal in range(3):
        tree.add(rollout(ordinal, ROOT, [call_step(), answer_step()], ordinal == 0))
    return tree


class Spy:
    """Stands in for the scheduler and the learner of a trainer."""

    def __init__(self, trainer, tree):
        self.engine = trainer.scheduler.engine
        self.compiled_programs = trainer.learner.compiled_programs
        self.tree = tree
        trainer.scheduler = trainer.learner = self

    def run(self, params, step_key, tasks, strategy, settings, on_round):
        self.engine.counters.decode_steps += 1
        return [self.tree], Summary()

    def update(self, state, rows):
        self.rows = rows
        return state, {}


def rows_of_a_step(algorithm, tree):
    """What the learner gets."""
    trainer = Trainer(build(from_dict({**SMALL, "algorithm": algorithm})))
    spy = Spy(trainer, tree)

    class State:
        params = jnp.zeros(())

    trainer.step(State(), 1, [(0, tree.task)], Interrupts())
    return spy.rows


def test_elpos_row():
    tree = searched_tree()
    rows = rows_of_a_step("elpo", tree)
    # By hand. Rewards of the leaves (nodes 2, 3, 4, 6): -1.1, 1, -1.1, -1.1. Then
    # r(1) = -1.1, r(0) = -0.05, r(5) = -1.1, and A_b is 1, -1, 0, 1, 0, -1, -1 of nodes 0 to 6.
    # A_t is 1.73205 at the leaf that is right, else -0.57735, and 0.19245 at node 0.
    a0 = 0.5 * (1 + 0.19245)
    a1 = 0.5 * (-1 - 0.57735)
    expected = [
        # 3 tokens of the prompt, then of a call its token and its output's, then the answer's.
        [0, 0, 0, a0, 0, a1, 0, -0.57735 / 2],
        [0, 0, 0, a0, 0, 0.5 * (1 + 1.73205)],
        [0, 0, 0, a0, 0, a1, 0, -0.57735 / 2],
        [0, 0, 0, a1, 0, a1],
    ]
    # The first localisation names node 1, which two trajectories contain; the second didn't probe.
    elc = [[0, 0, 0, 0, 0, 1, 0, 1], [0] * 6, [0, 0, 0, 0, 0, 1, 0, 1], [0] * 6]
    assert [row.tree for row in rows] == [0] * 4
    for row, advantages, widened in zip(rows, expected, elc, strict=True):
        np.testing.assert_allclose(row.advantages, advantages, atol=1e-5)
        np.testing.assert_array_equal(row.elc, widened)


def test_grpos_row():
    rows = rows_of_a_step("grpo", independent_tree())
    # Rewards 1, -1.1, -1.1: mean -0.4, standard deviation of the sample 1.21244.
    for row, a in zip(rows, [1.154700, -0.577350, -0.577350], strict=True):
        np.testing.assert_allclose(row.advantages, [0, 0, 0, a, 0, a], atol=1e-5)
        assert not row.elc.any()


def parents_of_waves(algorithm):
    """Where the rollouts of each wave begin, if all fail."""
    tree = empty_tree()

    def fail(ordinal, parent):
        return rollout(ordinal, parent, [call_step(), call_step(), answer_step()], False)

    controller = ALGORITHMS[algorithm].strategy(tree, RolloutConfig(budget=16))
    return [wave.parents for wave, _ in drive(controller, tree, fail)]


def test_elpo_searches_the_failures_of_its_first_whole_rollouts():
    first, second, *_ = parents_of_waves("elpo")
    assert first == (ROOT,) * 3
    assert second
    assert ROOT not in second


def test_grpos_rollouts_are_all_whole():
    assert parents_of_waves("grpo") == [(ROOT,) * 16]


def test_losses():
    """ELPO's, Table 2 of the paper; GRPO's clip is symmetric and never widened."""
    assert ALGORITHMS["elpo"].loss == LossSettings(
        eps_low=0.2, eps_high=0.315, eps_elc=0.115, aggregation=SEQ_MEAN_TOKEN_MEAN
    )
    grpo = ALGORITHMS["grpo"].loss
    assert (grpo.eps_low, grpo.eps_high, grpo.eps_elc) == (0.2, 0.2, 0.0)
    assert loss_settings(ALGORITHMS["grpo"], LossConfig(eps_high=0.5)).eps_high == 0.5
