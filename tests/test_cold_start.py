"""The cold start's cache and the state on its way, when they are damaged or can't be written."""

import shutil
import signal
from dataclasses import replace

import jax
import numpy as np
import processes
import pytest
from processes import ROOT, TINY, garble

from elpo_jax.cli import parse
from elpo_jax.cold_start import cache_folder, cold_start
from elpo_jax.components import build
from elpo_jax.interrupt import Interrupted


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    flags = [f"--config.{key}={value}" for key, value in TINY.items()]
    config, _ = parse(["train", "--config", str(ROOT / "experiments" / "sci.py"), *flags], [])
    with processes.kept_programs(tmp_path_factory.mktemp("compiled")):
        yield build(config)


def cold_started(components, partial):
    """(warnings, parameters) of a cold start."""
    warnings = []
    params, metrics = cold_start(components, lambda *_: None, partial, warnings.append)
    assert metrics["sft/loss"] > 0
    return warnings, params


def with_cache(components, folder):
    config = components.config
    return replace(components, config=replace(config, sft=replace(config.sft, cache_dir=folder)))


def test_a_broken_cache_entry_is_made_anew(components, tmp_path):
    cached = with_cache(components, str(tmp_path / "cold"))
    folder = cache_folder(cached)
    warnings, expected = cold_started(cached, tmp_path / "partial")
    assert not warnings
    garble(folder / "checkpoints" / "0")
    warnings, again = cold_started(cached, tmp_path / "partial")
    (line,) = warnings
    assert line.startswith(f"warning: {folder}/checkpoints/0: params/")
    assert line.endswith("; the cold start is made anew")
    jax.tree.map(np.testing.assert_array_equal, expected, again)
    assert cold_started(cached, tmp_path / "partial")[0] == []
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_broken_state_on_the_way_is_made_anew(components, tmp_path):
    """Of a cold start that was interrupted, after which a bit flipped."""
    uncached = with_cache(components, str(tmp_path / "cold"))
    _, expected = cold_started(uncached, tmp_path / "undisturbed")
    shutil.rmtree(tmp_path / "cold")

    def interrupt(step, metrics):
        if step == 7:
            raise Interrupted(signal.SIGTERM)

    partial = tmp_path / "partial"
    with pytest.raises(Interrupted):
        cold_start(uncached, interrupt, partial, lambda line: None)
    (folder,) = partial.iterdir()
    garble(folder / "7")
    warnings, params = cold_started(uncached, partial)
    (line,) = warnings
    assert line.startswith(f"warning: {folder}/7: params/")
    assert line.endswith("; the cold start is made anew")
    jax.tree.map(np.testing.assert_array_equal, expected, params)


def test_a_cache_that_cannot_be_written_loses_nothing(components, tmp_path):
    """The run keeps it then: it may be killed before it has a checkpoint."""
    (tmp_path / "cold").write_text("a file in its place")
    cached = with_cache(components, str(tmp_path / "cold"))
    warnings, expected = cold_started(cached, tmp_path / "partial")
    (line,) = warnings
    assert line.startswith("warning: the cold start isn't cached: ")
    assert line.endswith(": Not a directory")

    def on_step(step, metrics):
        raise AssertionError(f"update {step} again")

    params, _ = cold_start(cached, on_step, tmp_path / "partial", warnings.append)
    jax.tree.map(np.testing.assert_array_equal, expected, params)
    (tmp_path / "cold").unlink()
    cold_start(cached, on_step, tmp_path / "partial", warnings.append)
    assert warnings == [line, line]
    assert not (tmp_path / "partial").exists()
    assert cache_folder(cached).exists()
