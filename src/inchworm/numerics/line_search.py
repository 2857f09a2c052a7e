"""Searching along a direction for a point that is good enough."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class LineSearch(NamedTuple):
    """Where a line search ended."""

    point: Any
    """The accepted point; the start, bit for bit, if none was."""
    accepted: Bool[Array, ""]
    tries: Int[Array, ""]
    """Points that were looked at."""


def backtrack(
    acceptable: Callable[[Any], Bool[Array, ""]], start: Any, full_step: Any, shrink: float, max_tries: int
) -> LineSearch:
    """The first of start + shrink^j full_step, j = 0, ..., max_tries - 1, that is acceptable."""

    def at(size: Float[Array, ""]) -> Any:
        return jax.tree.map(lambda x, d: x + size * d, start, full_step)

    def unfinished(search: tuple[Bool[Array, ""], Int[Array, ""]]) -> Bool[Array, ""]:
        accepted, tries = search
        return ~accepted & (tries < max_tries)

    def try_next(search: tuple[Bool[Array, ""], Int[Array, ""]]) -> tuple[Bool[Array, ""], Int[Array, ""]]:
        _, tries = search
        return acceptable(at(jnp.float32(shrink) ** tries)), tries + 1

    accepted, tries = jax.lax.while_loop(unfinished, try_next, (jnp.array(False), jnp.array(0)))
    point = jax.lax.cond(accepted, lambda: at(jnp.float32(shrink) ** (tries - 1)), lambda: start)
    return LineSearch(point, accepted, tries)


def inner(a: Any, b: Any) -> Float[Array, ""]:
    """Inner product of two pytrees of the same structure."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.vdot(x, y), a, b)), start=jnp.zeros(()))
