"""The files of the ordinary tests are what torch says today."""

import numpy as np

from parity import golden
from parity.cases import CASES


def test_golden_files_are_up_to_date(pytestconfig):
    entries = [golden.make(case) for case in CASES]
    if pytestconfig.getoption("--write-golden"):
        golden.write(entries)
    kept = golden.read()
    assert [entry["name"] for entry in kept] == [case.name for case in CASES]
    for entry, old in zip(entries, kept, strict=True):
        logits, old_logits = entry.pop("logits"), old.pop("logits")
        np.testing.assert_allclose(logits, old_logits, atol=3e-5, err_msg=entry["name"])
        assert entry == old, f"{entry['name']}: make parity ARGS=--write-golden"
