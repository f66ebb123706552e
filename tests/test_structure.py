"""The cut of the code: imports point one way, and README shows every file.

The README's tree is a fenced block that opens with ```tree. A line is `name  # duty`, indented by
two spaces a level; a folder's name ends in `/`, and a line may name several levels at once
(`src/elpo_jax/`). `__init__.py` isn't shown.
"""

import ast
import configparser
import fnmatch
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "elpo_jax"

# Every module belongs to the layer that names the longest prefix of it.
LAYERS = {
    # Types that all others share. No jax.
    "base": (
        "",  # the package itself
        "config",
        "errors",
        "learner.base",
        "policy.architecture",
        "policy.rope",
        "presets",
        "policy.weight_names",
        "rollout.controller",
        "rollout.tree",
        "tasks.base",
        "tools.base",
    ),
    # Pure functions that are traced and compiled. No I/O, no Python randomness.
    "device": (
        "learner.logprobs",
        "learner.loss",
        "learner.optimizer",
        "learner.partition",
        "learner.surrogate",
        "learner.update",
        "policy.attention",
        "policy.model",
        "policy.sharding",
        "sampler.cache_attention",
        "sampler.device",
        "sampler.sampling",
    ),
    # Plain Python. No jax.
    "host": (
        "cli",
        "comparison",
        "comparison_plot",
        "credit",
        "interrupt",
        "metrics",
        "policy.chat",
        "policy.chat_files",
        "policy.chat_layout",
        "policy.conversation",
        "policy.export_tokenizer",
        "policy.families",
        "policy.origin",
        "policy.published",
        "policy.hf_tokenizer",
        "policy.template",
        "policy.checkpoint_folder",
        "policy.safetensors_files",
        "policy.tokenizer",
        "policy.tokenizer_json",
        "policy.tokenizer_settings",
        "progress",
        "report",
        "rollout",
        "sandbox",
        "tasks",
        "tools",
        "validation",
        "workdir",
    ),
    # Where the two meet: host code that calls device code.
    "meeting": (
        "algorithms",
        "checkpoint",
        "cold_start",
        "components",
        "data_order",
        "diagnosis",
        "evaluation",
        "faults",
        "learner",
        "planning",
        "policy",
        "sampler",
        "trainer",
        "training",
    ),
    # Programs. Nobody imports them.
    "entry": (
        "compare",
        "convert",
        "evaluate",
        "plan",
        "policy.train_tokenizer",
        "replay",
        "report.__main__",
        "tasks.science.derive_elements",
        "train",
    ),
}
MAY_IMPORT = {
    "base": {"base"},
    "device": {"base", "device"},
    "host": {"base", "host"},
    "meeting": {"base", "device", "host", "meeting"},
    "entry": {"base", "device", "host", "meeting"},
}
JAX = {"chex", "flax", "jax", "jaxlib", "optax", "orbax"}
NOT_ON_DEVICE = {
    "absl", "asyncio", "datetime", "io", "logging", "os", "pathlib", "pickle", "random", "secrets",
    "shutil", "socket", "subprocess", "sys", "tempfile", "threading", "time", "uuid",
}  # fmt: skip


def module_name(path):
    """'learner.base' for src/elpo_jax/learner/base.py; '' for the package itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def layer_of(module):
    best = {
        prefix: layer
        for layer, prefixes in LAYERS.items()
        for prefix in prefixes
        if module == prefix or (prefix and module.startswith(prefix + "."))
    }
    return best[max(best, key=len)] if best else None


def imports(module):
    """(modules of this package, top-level names of others) that a module imports anywhere."""
    inner, outer = set(), set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package != "elpo_jax":
                outer.add(package)
            else:  # `from a.b import c`: the module a.b.c, or c of the module a.b
                inner.add(rest if rest in FILES else rest.rpartition(".")[0])
    return inner, outer


@pytest.mark.parametrize("module", FILES)
def test_imports_point_one_way(module):
    layer = layer_of(module)
    assert layer, f"{module}: give it a layer in LAYERS"
    inner, outer = imports(module)
    wrong = {name: layer_of(name) for name in inner if layer_of(name) not in MAY_IMPORT[layer]}
    assert not wrong, f"{module} ({layer}) may import {MAY_IMPORT[layer]}, imports {wrong}"
    if layer in ("base", "host"):
        assert not outer & JAX, f"{module} ({layer}) mustn't import {outer & JAX}"
    if layer == "device":
        assert not outer & NOT_ON_DEVICE, f"{module} mustn't import {outer & NOT_ON_DEVICE}"


@pytest.mark.parametrize("module", [name for name in FILES if layer_of(name) == "device"])
def test_device_modules_do_no_io(module):
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"open", "print", "input", "exec", "eval"}


def test_imports_have_no_cycle():
    graph = {module: imports(module)[0] - {module} for module in FILES}
    done = set()
    while ready := {module for module, needs in graph.items() if needs <= done} - done:
        done |= ready
    assert done == set(FILES), f"a cycle among {set(FILES) - done}"


def test_the_layers_name_only_what_there_is():
    for prefix in {prefix for prefixes in LAYERS.values() for prefix in prefixes}:
        assert any(name == prefix or name.startswith(f"{prefix}.") for name in FILES), prefix


def test_only_the_registry_knows_the_suites():
    """A further suite is its own file or folder, a line of the registry and an experiment."""
    shared = {"answers", "base", "benchmarks", "code_judge", "code_tests", "conversations", "files"}
    shared |= {
        "formats",
        "math_judge",
        "problems",
        "question",
        "rewards",
        "rows",
        "units",
        "verifiers",
    }
    suites = {name.split(".")[1] for name in FILES if name.startswith("tasks.")} - shared
    assert {"math", "question_suite", "science"} <= suites
    for module in FILES:
        inner, _ = imports(module)
        known = {name.split(".")[1] for name in inner if name.startswith("tasks.")} & suites
        own = module.split(".")[1] if module.startswith("tasks.") else None
        # The embedded tokenizer is made of the science suite's conversations.
        if known - {own} and module not in ("tasks", "policy.train_tokenizer"):
            pytest.fail(f"{module} knows {sorted(known)}")


def test_everything_imported_is_required():
    """What setup.cfg doesn't list isn't there on a fresh machine."""
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    package_of = {"absl": "absl-py", "orbax": "orbax-checkpoint"}
    used = set().union(*(imports(module)[1] for module in FILES)) - set(sys.stdlib_module_names)
    for name in used:
        assert f"    {package_of.get(name, name)}>=" in text or f"= {name}>=" in text, name


def test_data_files_are_packaged():
    """An editable installation wouldn't miss them."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = settings["options.package_data"]["elpo_jax"].split(", ")
    packaged = {path for pattern in patterns for path in SOURCE.glob(pattern)}
    data = {
        path for path in SOURCE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert packaged == data


def tree_lines():
    """(path, duty) of each line of the README's tree."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, opening, rest = text.partition("```tree\n")
    assert opening, "README.md: expected a block that opens with ```tree"
    above, lines = [], []
    for line in rest.partition("\n```")[0].splitlines():
        entry, _, duty = line.partition("#")
        depth, odd = divmod(len(line) - len(line.lstrip()), 2)
        assert not odd, f"README.md: expected an indent of 2 a level: {line!r}"
        assert depth <= len(above), f"README.md: expected a folder above: {line!r}"
        above = above[:depth]
        path = "".join(above) + entry.strip()
        if path.endswith("/"):
            above.append(entry.strip())
        lines.append((path, duty.strip()))
    return lines


def files_on_disk():
    """Files that a reader meets: all but the ignored ones."""
    text = (ROOT / ".gitignore").read_text(encoding="utf-8")
    ignored = [".git", "__init__.py", *(line.rstrip("/") for line in text.split())]
    found = set()
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if any(fnmatch.fnmatch(part, pattern) for part in parts for pattern in ignored):
            continue
        if path.is_file():
            found.add("/".join(parts))
    return found


def test_the_readme_shows_every_file():
    shown = [path for path, _ in tree_lines()]
    assert len(shown) == len(set(shown)), "a path is shown twice"
    files = {path for path in shown if not path.endswith("/")}
    disk = files_on_disk()
    assert not disk - files, f"not in README.md's tree: {sorted(disk - files)}"
    assert not files - disk, f"in README.md's tree, but not there: {sorted(files - disk)}"


def test_every_line_of_the_readmes_tree_has_a_duty():
    assert not [path for path, duty in tree_lines() if not duty]
