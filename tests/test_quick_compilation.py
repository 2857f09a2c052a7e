"""A flag that XLA does not know ends no test run without a word."""

import os
import subprocess
import sys
from pathlib import Path

import quick_compilation
from quick_compilation import known_flags

UNKNOWN = "--xla_no_such_flag=true"
KNOWN = "--xla_backend_optimization_level=0"


def test_a_flag_that_xla_does_not_know_is_left_out_and_tried_once(tmp_path, monkeypatch):
    assert known_flags(tmp_path, [UNKNOWN, KNOWN]) == KNOWN
    monkeypatch.setattr(quick_compilation, "starts_with", None)
    assert known_flags(tmp_path, [UNKNOWN, KNOWN]) == KNOWN


def test_flags_of_one_s_own_that_xla_does_not_know_are_named_before_the_first_test():
    command = [sys.executable, "-m", "pytest", Path(__file__).with_name("test_checks.py")]
    environment = os.environ | {"XLA_FLAGS": UNKNOWN}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"XLA_FLAGS = {UNKNOWN}: XLA does not start with it." in done.stdout + done.stderr
