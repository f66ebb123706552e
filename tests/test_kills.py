"""Twenty kills in a row, at random moments of a run, which then ends as an undisturbed one."""

import time

import numpy as np
import processes
import pytest
from processes import LEARNING, assert_same, finish, outcome, phases

KILLS = 20
SETTINGS = LEARNING | {"train.steps": 12, "eval.every": 4}


@pytest.mark.slow
def test_twenty_kills_in_a_row(tmp_path):
    """Each life lasts a random part of a quarter of the whole run's time, from the cold start on.

    A run that comes to its end before its kill is compared too, and the next life begins anew.
    """
    compiled = tmp_path / "compiled"

    def start(workdir, cache):
        return processes.start(SETTINGS | {"sft.cache_dir": cache}, workdir, compiled)

    finish(start(tmp_path / "undisturbed", tmp_path / "one cold start"))
    undisturbed = outcome(tmp_path / "undisturbed")
    assert len({row["policy/grad_norm"] for row in undisturbed[0][1:]}) > 6, "it learns"
    # Once more, to time a run that has its programs.
    begun = time.monotonic()
    finish(start(tmp_path / "timed", tmp_path / "another cold start"))
    duration = time.monotonic() - begun

    runs, kills = 0, 0
    workdir = tmp_path / "run 0"
    rng = np.random.default_rng(20)
    while kills < KILLS:
        process = start(workdir, tmp_path / f"cold start {runs}")
        seconds = rng.uniform(0, duration / 4)
        try:
            process.communicate(timeout=seconds)
        except processes.subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            begun = phases(workdir).read_text().splitlines() if phases(workdir).exists() else []
            print(f"kill {kills} after {seconds:.1f} s, in {begun[-1] if begun else 'the start'}")
            continue
        assert process.returncode == 0
        assert_same(undisturbed, outcome(workdir))
        runs += 1
        workdir = tmp_path / f"run {runs}"
    output = finish(start(workdir, tmp_path / f"cold start {runs}"))
    print(f"{kills} kills, {runs + 1} runs of {duration:.0f} s; the last one: {output[:300]}")
    assert_same(undisturbed, outcome(workdir))
