"""The run's folder: its lock, and files that are whole or not there."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest

from elpo_jax import workdir
from elpo_jax.errors import UsageError
from elpo_jax.workdir import WorkDir

HOLD = (
    "import sys, time; from pathlib import Path; from elpo_jax.workdir import WorkDir\n"
    "with WorkDir(Path(sys.argv[1])).locked():\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


def test_a_second_process_is_kept_out_until_the_first_is_killed(tmp_path):
    folder = WorkDir(tmp_path / "runs" / "x")
    command = [sys.executable, "-c", HOLD, str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UsageError) as caught, folder.locked():
                pass
        finally:
            holder.kill()
    assert caught.value.problems == (f"{folder.path}: in use by process {holder.pid}",)
    with folder.locked():
        assert (folder.path / ".lock").read_text() == str(os.getpid())
    with folder.locked():
        pass


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "x").write_text("")
    with (
        pytest.raises(UsageError, match="x: expected a folder to write"),
        WorkDir(tmp_path / "x").locked(),
    ):
        pass


def test_write_json_replaces_the_file_or_leaves_it(tmp_path):
    path = tmp_path / "config.json"
    workdir.write_json(path, {"a": [1, 2.5, None]})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        workdir.write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]


def test_a_cache_entry_is_whole_or_not_there(tmp_path):
    folder = tmp_path / "cache" / "entry"
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with workdir.cache_entry(folder.with_name("other")) as temporary:
        name = temporary.name.removesuffix(str(os.getpid()))
    shutil.rmtree(folder.with_name("other"))
    left = folder.with_name(f"{name}{process.pid}")  # by a kill
    running = folder.with_name(f"{name}{os.getppid()}")
    elsewhere = folder.with_name(f".other.far-away.{process.pid}")  # a cache may be shared
    for path in (left, running, elsewhere):
        (path / "checkpoints").mkdir(parents=True)
    with pytest.raises(OSError, match="No such file"), workdir.cache_entry(folder) as temporary:
        (temporary / "missing" / "half").touch()
    assert {*folder.parent.iterdir()} == {running, elsewhere}
    with workdir.cache_entry(folder) as temporary:
        (temporary / "whole").touch()
    assert {*folder.parent.iterdir()} == {running, elsewhere, folder}
    assert [path.name for path in folder.iterdir()] == ["whole"]
