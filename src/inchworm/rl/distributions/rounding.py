"""How far two evaluations of the same network may lie apart."""

from typing import Any

FLOAT32 = 1e-6
"""Of an output, where the network computes in float32: some of the dtype's spacings, which are 2^-23 of a number."""
BFLOAT16 = 2.0**-7
"""Where it computes in bfloat16: what was nearly the same may be rounded to neighbours, which are up to so much of the
number apart."""


def output_error(rounding: float, size: Any) -> Any:
    """How far two evaluations of an output of this size may lie apart: 2e-6 + rounding size.

    Whatever is rounded is a sum in float32, taken in another order. What that moves does not vanish with the output,
    because the terms need not: hence 2e-6.
    """
    return 2e-6 + rounding * size
