"""A few injections of each row, with fixed seeds; soak.py goes on with further ones."""

import injections
import pytest

SEEDS = {"RF1": 10, "RF11": 6, "RF12": 2, "RF13": 5, "RF16": 6, "RF17": 4}
"""How many, where it is not one."""


@pytest.mark.parametrize("row", injections.ROWS)
def test_nothing_is_lost_and_nothing_is_silent(row, tmp_path, faults):
    faults.begin(row)
    for seed in range(SEEDS.get(row, 1)):
        (out := tmp_path / str(seed)).mkdir()
        if row in injections.ALONE:
            survived, detected = injections.inject_alone(row, seed, out)
        else:
            survived, detected = injections.ROWS[row](seed, out)
        faults.count(row, survived=survived, detected=detected)
