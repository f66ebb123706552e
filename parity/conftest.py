"""The cases' models, made once each, and the table at the end of the run.

Set JAX_PLATFORMS to compare another back end than the CPU with torch.
"""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # read when jax is imported

import jax
import pytest
import torch
import transformers

from elpo_jax.policy.architecture import Compute
from parity import jax_side, torch_side
from parity.cases import CASES
from parity.table import BOUNDS, CHECKS, GREEDY, markdown

jax.config.update("jax_numpy_rank_promotion", "raise")
torch.set_num_threads(1)  # tiny models
transformers.utils.logging.disable_progress_bar()

RESULTS = Path(__file__).parent / "RESULTS.md"
PROPERTY = "parity"  # of a test: case, check, what was found; it reaches us from workers too


def pytest_addoption(parser):
    parser.addoption("--write-golden", action="store_true", help="write tests/golden/families.json")


@pytest.fixture(scope="session", params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(scope="session")
def peer(case):
    """The torch model, in float32."""
    return torch_side.make_model(case)


@pytest.fixture(scope="session")
def folder(peer, tmp_path_factory):
    """What it saved."""
    path = tmp_path_factory.mktemp("checkpoint")
    peer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def decoder(case, folder):
    """Our decoder of that folder, computed in some way."""
    return lambda **compute: jax_side.make_decoder(case, folder, Compute(**compute))


@pytest.fixture(scope="session")
def params(decoder, folder):
    """Its parameters, in float32."""
    return jax_side.import_params(decoder(), folder)


@pytest.fixture
def check_difference(case, record_property):
    """Keeps a difference for the table, and asserts that it is within the check's bound."""

    def check(name, value):
        record_property(PROPERTY, (case.name, name, f"{value:.1e}"))
        assert value <= BOUNDS[name], f"{name}: expected {BOUNDS[name]}, got {value:.2e}"

    return check


@pytest.fixture
def check_tokens(case, record_property):
    """Keeps how many greedy tokens are equal, and asserts that all are."""

    def check(equal, of):
        record_property(PROPERTY, (case.name, GREEDY, f"{equal}/{of}"))
        assert equal == of, f"{GREEDY}: expected {of} equal tokens, got {equal}"

    return check


def pytest_terminal_summary(terminalreporter):
    reports = [
        report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)
    ]
    properties = [value for report in reports for value in report.user_properties]
    found = {(case, check): cell for key, (case, check, cell) in properties if key == PROPERTY}
    if not found:
        return
    text = markdown([case.name for case in CASES], found)
    terminalreporter.write(f"\n{text}")
    if len(found) == len(CASES) * len(CHECKS):
        versions = ", ".join(
            f"{module.__name__} {module.__version__}" for module in (transformers, torch, jax)
        )
        RESULTS.write_text(
            f"# Parity with transformers\n\nBy `make parity`, with {versions} "
            f"({jax.default_backend()}); `parity/table.py` says what is compared.\n\n{text}",
            encoding="utf-8",
        )
