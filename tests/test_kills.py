"""Twenty kills in a row, at random moments of a run, which then ends as an undisturbed one."""

import shutil
import time
from collections import Counter

import numpy as np
import processes
import pytest
from processes import LEARNING, assert_same, finish, outcome, phases, wait_for

KILLS = 20
SETTINGS = LEARNING | {"train.steps": 12, "eval.every": 4}


@pytest.mark.slow
def test_twenty_kills_in_a_row(tmp_path):
    """Most lives last a random part of a third of the run beyond its start-up, some less than that.

    The first third of the kills meets a run with its cold start, the others one that finds it. A
    run that comes to its end before its kill is compared too, and the next life begins anew.
    """
    compiled = tmp_path / "compiled"

    def cache(number):
        return tmp_path / f"cold start {number}"

    def start(number):
        settings = SETTINGS | {"sft.cache_dir": cache(number)}
        return tmp_path / f"run {number}", processes.start(
            settings, tmp_path / f"run {number}", compiled
        )

    workdir, process = start("undisturbed")
    finish(process)
    undisturbed = outcome(workdir)
    assert len({row["policy/grad_norm"] for row in undisturbed[0][1:]}) > 6, "it learns"
    # Once more, to time a run that has its programs.
    begun = time.monotonic()
    workdir, process = start("timed")
    wait_for(lambda: phases(workdir).exists(), process, "the cold start")
    start_up = time.monotonic() - begun
    finish(process)
    work = time.monotonic() - begun - start_up

    rng = np.random.default_rng(20)
    runs, hit = 0, []
    while len(hit) < KILLS:
        if len(hit) >= KILLS // 3 and not cache(runs).exists():
            shutil.copytree(cache("undisturbed"), cache(runs))
        workdir, process = start(runs)
        is_early = rng.random() < 0.2
        seconds = rng.uniform(0, start_up) if is_early else start_up + rng.uniform(0, work / 3)
        try:
            process.communicate(timeout=seconds)
        except processes.subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            lines = phases(workdir).read_text().splitlines() if phases(workdir).exists() else []
            hit.append(lines[-1].rstrip("0123456789 ") if lines else "start")
            print(
                f"kill {len(hit)} after {seconds:.1f} s, in {lines[-1] if lines else 'the start'}"
            )
            continue
        assert process.returncode == 0
        assert_same(undisturbed, outcome(workdir))
        runs += 1
    workdir, process = start(runs)
    finish(process)
    assert_same(undisturbed, outcome(workdir))
    print(f"{runs + 1} runs of {start_up:.0f} + {work:.0f} s; kills: {Counter(hit)}")
    assert "cold start" in hit
    assert {"rollout", "update"} & set(hit)
