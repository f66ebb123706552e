"""The Colab notebook, from top to bottom on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_suites_run import TINY

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "experiments" / "colab_tpu.ipynb"


def test_it_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


def as_flags(settings):
    return " ".join(f"--config.{key}={value}" for key, value in settings.items())


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_and_shows_what_it_promises(tmp_path):
    settings = {**TINY, "sft.cache_dir": tmp_path / "cache"}
    own = {key: value for key, value in settings.items() if not key.startswith("policy.")}
    environment = {
        **os.environ,
        "ELPO_RUNS": str(tmp_path / "runs"),
        "ELPO_ARGS": as_flags(settings),
        "ELPO_OWN_ARGS": as_flags(own),
        "ELPO_SOURCE": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JUPYTER_PLATFORM_DIRS": "1",
    }
    executed = tmp_path / "executed.ipynb"
    executed.write_bytes(NOTEBOOK.read_bytes())
    command = [sys.executable, "-m", "jupyter", "execute", "--inplace", str(executed)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=900)
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    outputs = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
    text = ["".join("".join(o.get("text", [])) for o in cell) for cell in outputs]
    kinds = [[key for o in cell for key in o.get("data", {})] for cell in outputs]
    assert "at the fullest moment" in text[2]
    assert "held-out success" in text[3]
    assert kinds[4].count("image/png") == 3
    assert "text/html" in kinds[5]
    assert "config.json" in text[6]
    assert "held-out success" in text[7]
    assert "held-out success" not in text[8].replace("Held-out success", "")
