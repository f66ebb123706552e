"""Plans: bytes by arithmetic and against a run's own arrays, programs that aren't run."""

import dataclasses

import jax
import numpy as np
import pytest

from elpo_jax import planning
from elpo_jax.cli import parse
from elpo_jax.components import build
from elpo_jax.config import MeshConfig
from elpo_jax.errors import UsageError
from elpo_jax.plan import OPTIONS, main, table
from elpo_jax.policy.architecture import Compute
from elpo_jax.policy.families import architecture_of
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.published import PUBLISHED
from elpo_jax.policy.sharding import filled, param_shapes
from elpo_jax.sampler import device
from elpo_jax.trainer import make_learner
from tests.test_suites_run import TINY

# What is published of the two: 4.0B, 3.6B of them not in the embedding; 7.61B, and 6.53B.
# https://huggingface.co/Qwen/Qwen3-4B-Instruct-2507, https://huggingface.co/Qwen/Qwen2.5-7B-Instruct
PARAMETERS = {"Qwen3-4B-Instruct-2507": 4_022_468_096, "Qwen2.5-7B-Instruct": 7_615_616_512}


def by_hand(name):
    """Parameters counted from the sizes of config.json."""
    c = PUBLISHED[name]
    width, layers = c["hidden_size"], c["num_hidden_layers"]
    size = c.get("head_dim", width // c["num_attention_heads"])
    heads, kv_heads = c["num_attention_heads"] * size, c["num_key_value_heads"] * size
    attention = 2 * width * heads + 2 * width * kv_heads
    extra = heads + 2 * kv_heads if c["model_type"] == "qwen2" else 2 * size
    mlp = 3 * width * c["intermediate_size"]
    embedding = c["vocab_size"] * width * (1 if c["tie_word_embeddings"] else 2)
    return embedding + layers * (attention + extra + mlp + 2 * width) + width


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_have_the_published_number_of_parameters(name):
    model = Decoder(architecture_of(PUBLISHED[name]), Compute())
    found = sum(x.size for x in jax.tree.leaves(param_shapes(model)))
    assert found == by_hand(name) == PARAMETERS[name]


def tiny_config(**mesh):
    settings = [f"--config.{key}={value}" for key, value in TINY.items()]
    config, _ = parse(["plan", "--config", "experiments/sci.py", *settings], OPTIONS)
    return dataclasses.replace(config, mesh=MeshConfig(**mesh))


def test_a_plan_holds_what_a_run_holds():
    components = build(tiny_config())
    config, model, mesh = components.config, components.model, components.mesh
    names = []
    plan = planning.make_plan(config, model, mesh, names.append)

    def size(tree):
        return sum(x.nbytes for x in jax.tree.leaves(tree))

    learner = make_learner(config, model, mesh)
    state = learner.init(components.init_params())
    assert plan.held == {
        "parameters": size(state.params),
        "optimiser": size((state.opt_state, state.masters)),
        "cache of the lanes": size(
            device.init_cache(model, config.sampler.lanes, config.episode.max_length)
        ),
        "cache of the kept rows": size(
            device.init_cache(model, config.sampler.rows, config.episode.max_length)
        ),
    }
    assert plan.learning == {"gradients": size(learner.programs.zeros(state.params))}
    assert [program.name for program in plan.programs] == names
    assert len(names) == 6
    assert all(program.temporary >= 0 for program in plan.programs)
    assert plan.peak >= sum(plan.held.values()) + plan.learning["gradients"]
    assert plan.fits  # a machine that runs these tests has room for it


def test_what_does_not_fit_is_said_with_what_would_help():
    config = tiny_config()
    model = build(config).model
    plan = planning.Plan(
        devices="8 x TPU v5 lite",
        processes=2,
        memory=16 * planning.GIB,
        held={
            "parameters": planning.GIB,
            "optimiser": 2 * planning.GIB,
            "cache of the lanes": 9 * planning.GIB,
            "cache of the kept rows": planning.GIB,
        },
        learning={"gradients": planning.GIB},
        programs=(
            planning.Program("decode of 8 lanes", planning.GIB, 1.0),
            planning.Program("gradient of 4 x 64", planning.GIB // 2, 1.0),
            planning.Program("log-probabilities of 4 x 64", 2 * planning.GIB, 1.0),
        ),
        step_flops={"rollouts": 2e15},
    )
    assert plan.peak == 15 * planning.GIB  # 13 held; 2 of log-probabilities > 1 + 0.5
    assert plan.fits is False
    lines = planning.advice(plan, config)
    assert lines[1].startswith("  cache (10.00 GiB): fewer sampler.lanes=")
    assert [line.split(" (")[0].strip() for line in lines[2:]] == [
        "optimiser and gradients", "learning", "parameters", "sampling",
    ]  # fmt: skip
    text = "\n".join(table(plan))
    assert "fits: no" in text
    assert "warning: 2 hosts; training runs on one so far, which has at most v5e:2x4" in text
    assert "15.000 GiB" in text
    assert "2e+15 FLOP a step" in text
    assert model.architecture.num_layers == 1


def test_flops_of_a_step_by_hand():
    components = build(tiny_config())
    config, a = components.config, components.model.architecture
    kernels = [
        x.size
        for path, x in jax.tree_util.tree_leaves_with_path(param_shapes(components.model))
        if "kernel" in jax.tree_util.keystr(path)
    ]
    length = config.episode.max_length
    attention = 4 * a.num_layers * a.num_heads * a.head_dim * length / 2
    tokens = config.train.batch_prompts * config.rollout.budget * length
    found = planning.step_flops(config, components.model)
    assert found["rollouts"] == pytest.approx(tokens * (2 * sum(kernels) + attention))
    assert found["updates"] == pytest.approx(3 * found["rollouts"])


@pytest.mark.parametrize(
    ("given", "devices", "expected"),
    [
        ((1, 0, 2), 8, (1, 4, 2)),
        ((0, 1, 1), 1, (1, 1, 1)),
        ((2, 2, 2), 8, (2, 2, 2)),
        ((0, 3, 1), 8, (2, 3, 1)),  # `make_mesh` then says that 6 aren't 8
    ],
)
def test_an_axis_of_0_takes_the_devices_that_the_others_leave(given, devices, expected):
    assert filled(MeshConfig(*given), devices) == MeshConfig(*expected)


def test_two_axes_of_0_are_refused(tmp_path):
    argv = ["plan", "--config", "experiments/sci.py"]
    with pytest.raises(UsageError, match="mesh: expected at most one axis of 0"):
        parse([*argv, "--config.mesh.data=0", "--config.mesh.fsdp=0"], OPTIONS)


def test_bad_input_is_one_line():
    argv = ["plan", "--config", "experiments/sci.py"]
    with pytest.raises(UsageError, match=r"policy\.checkpoint: expected a folder, or the name of"):
        main([*argv, "--config.policy.checkpoint=nothing"])
    with pytest.raises(UsageError, match=r"policy\.tokenizer: .*expected a"):
        main([*argv, f"--config.policy.tokenizer={__file__}"])
    with pytest.raises(UsageError, match=r"--topology: (expected a TPU slice|needs libtpu)"):
        main([*argv, "--topology", "v99:1x1"])


def test_a_mesh_for_devices_that_are_not_here_is_told_of_the_topology():
    with pytest.raises(UsageError, match=r"; --topology, such as v5e:4x4, plans for a slice inst"):
        main(["plan", "--config", "experiments/sci.py:qwen3_4b"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chips", "hosts"), [("v5e:2x4", 8, 1), ("v5e:4x4", 16, 4)])
def test_hosts_of_a_slice(name, chips, hosts):
    pytest.importorskip("libtpu")
    devices = planning.topology_devices(name)
    assert (len(devices), len({each.process_index for each in devices})) == (chips, hosts)


@pytest.mark.slow
def test_a_slice_of_tpus_without_one():
    pytest.importorskip("libtpu")
    config = tiny_config(data=2, fsdp=2)
    devices = planning.topology_devices("v5e:2x2")
    model = build(tiny_config()).model
    mesh = jax.sharding.Mesh(np.asarray(devices).reshape(2, 2, 1), ("data", "fsdp", "tensor"))
    plan = planning.make_plan(config, model.clone(mesh=mesh), mesh)
    assert plan.devices == "4 x TPU v5 lite"
    assert plan.memory == 16 * planning.GIB
    whole = planning.make_plan(tiny_config(), model, model.mesh)
    assert plan.held["cache of the lanes"] * 4 == whole.held["cache of the lanes"]
