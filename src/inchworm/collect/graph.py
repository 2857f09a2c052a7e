"""JAX environments: rollout and update in one compiled call, several iterations and several runs at a time."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int

from inchworm.algorithms.iteration import Iterate
from inchworm.algorithms.state import TrainState, collection_key
from inchworm.collect import tail as tails
from inchworm.collect.acting import prepare
from inchworm.collect.collector import Outcome
from inchworm.collect.rollout import Standing, TracedRollout, at_start
from inchworm.envs.jax_env import first_key
from inchworm.envs.pool import environment_seed
from inchworm.envs.traced import Copies
from inchworm.errors import CheckpointError
from inchworm.numerics.tree import from_arrays, to_arrays
from inchworm.types import Episodes, Metrics, PRNGKey

Advance = Callable[[TrainState, Standing], tuple[TrainState, Standing, Metrics, Episodes]]
"""One iteration: from the training state and the environments' to those after it."""


class Learner(NamedTuple):
    """A run's learner and its environments."""

    state: TrainState
    standing: Standing


def make_advance(rollout: TracedRollout, iterate: Iterate, shape: tuple[int, int], tail_gamma: float | None) -> Advance:
    """An iteration of T steps of N environments as one function.

    With `tail_gamma` episodes that the horizon cuts are continued to their end, discounted by it.
    """
    horizon, num_envs = shape

    def collect(state: TrainState, key: PRNGKey, now: Standing) -> Any:
        normalizers, noise = prepare(state.model, state.obs_stats, key, shape)
        return rollout(state.model, normalizers, noise, now)

    def advance(state: TrainState, now: Standing) -> tuple[TrainState, Standing, Metrics, Episodes]:
        key = collection_key(state.key, state.iteration)
        collected, episodes, now = collect(state, key, now)
        if tail_gamma is None:
            new_state, metrics = iterate(state, collected)
            return new_state, now, metrics, episodes

        def unfinished(carry: tuple[Any, Standing, Any]) -> Bool[Array, ""]:
            tail, _, steps = carry
            return jnp.any(tail.alive) & (steps < tails.MAX_TAIL_STEPS)

        def go_on(carry: tuple[Any, Standing, Any]) -> tuple[Any, Standing, Any]:
            tail, now, steps = carry
            steps += horizon
            *more, now = collect(state, jax.random.fold_in(key, steps), now)
            return tails.extend(tail, *more, tail_gamma), now, steps

        tail, now, steps = jax.lax.while_loop(unfinished, go_on, (tails.start(collected), now, jnp.array(0)))
        collected, episodes = tails.attach(collected, episodes, tail)
        new_state, metrics = iterate(state, collected)
        return new_state, now, metrics | {"collect/tail_steps": (steps * num_envs).astype(jnp.float32)}, episodes

    return advance


def make_chunk(advance: Advance, capacity: int) -> Callable[[Learner, Int[Array, ""]], tuple[Learner, Any]]:
    """The function that does a number of iterations, `capacity` at most, and stacks what each came to."""

    def chunk(learner: Learner, count: Int[Array, ""]) -> tuple[Learner, Any]:
        shapes = jax.eval_shape(lambda learner: advance(*learner)[2:], learner)
        rows = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)

        def one(index: Int[Array, ""], carry: tuple[Learner, Any]) -> tuple[Learner, Any]:
            learner, rows = carry
            state, standing, *row = advance(*learner)
            rows = jax.tree.map(lambda stack, leaf: stack.at[index].set(leaf), rows, tuple(row))
            return Learner(state, standing), rows

        return jax.lax.fori_loop(0, count, one, (learner, rows))

    return chunk


class Programs(NamedTuple):
    """The compiled functions of runs that differ by their seeds; all take them side by side, (R, ...)."""

    start: Callable[[PRNGKey, PRNGKey], Learner]
    """From the keys of the learners (R,) and of their environments (R, N)."""
    advance: Callable[[Learner, Int[np.ndarray, " R"]], tuple[Learner, Any]]
    """A number of iterations of each, and what they came to."""
    capacity: int
    """The most iterations of one call."""


def make_programs(
    init: Callable[[PRNGKey], TrainState], envs: Copies, advance: Advance, capacity: int, mesh: Mesh | None
) -> Programs:
    """Compiles the iterations of several runs.

    On a CPU the runs are done one after the other, each with the very operations of a single run, on as many devices
    as the mesh has; on other devices they are done together, as further axes of every array.
    """
    chunk = make_chunk(advance, capacity)

    def begin(key: PRNGKey, env_keys: PRNGKey) -> Learner:
        state = init(key)
        return Learner(state, at_start(state.model, *envs.start(env_keys)))

    def all_begin(keys: PRNGKey, env_keys: PRNGKey) -> Learner:
        return jax.lax.map(lambda each: begin(*each), (keys, env_keys))

    def all_advance(learners: Learner, counts: Int[Array, " R"]) -> tuple[Learner, Any]:
        if jax.default_backend() != "cpu":
            return jax.vmap(chunk)(learners, counts)
        return jax.lax.map(lambda each: chunk(*each), (learners, counts))

    if mesh is not None:
        split = PartitionSpec(mesh.axis_names)
        all_advance = jax.shard_map(all_advance, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    return Programs(jax.jit(all_begin), jax.jit(all_advance), capacity)


class GraphCollector:
    """Runs whose environments and learners are arrays: they stay in JAX between compiled calls."""

    def __init__(self, programs: Programs, seeds: Sequence[int], num_envs: int, copies: int = 1) -> None:
        """Starts a run for each seed.

        Args:
            programs: as `make_programs` gives them.
            seeds: of the runs.
            num_envs: of each.
            copies: a number that the runs must be a multiple of; others that nobody asked for make up for it.
        """
        self.capacity = programs.capacity
        self._programs = programs
        self._runs = len(seeds)
        seeds = [*seeds, *[0] * (-len(seeds) % copies)]
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        env_keys = [
            jnp.stack([first_key(environment_seed(seed, index, 0)) for index in range(num_envs)]) for seed in seeds
        ]
        self._learners = programs.start(keys, jnp.stack(env_keys))
        self._before = self._learners

    def advance(self, counts: Sequence[int]) -> list[list[Outcome]]:
        self._before = self._learners
        return self._outcomes(counts, *self._call(counts))

    def repeat(self, counts: Sequence[int]) -> None:
        self._learners = self._before
        self._call(counts)

    def _call(self, counts: Sequence[int]) -> Any:
        padded = np.zeros(jax.tree.leaves(self._learners)[0].shape[0], np.int32)
        padded[: self._runs] = counts
        self._learners, rows = self._programs.advance(self._learners, padded)
        return jax.device_get(rows)

    def _outcomes(
        self, counts: Sequence[int], metrics: dict[str, np.ndarray], episodes: Episodes
    ) -> list[list[Outcome]]:
        return [
            [
                Outcome(
                    {name: float(values[run, index]) for name, values in metrics.items()},
                    Episodes(*(leaf[run, index] for leaf in episodes)),
                )
                for index in range(count)
            ]
            for run, count in enumerate(counts)
        ]

    def state(self, run: int) -> TrainState:
        return _pick(self._learners, run).state

    def moved(self, run: int) -> list[str]:
        """Nothing: acting and updating read the same arrays."""
        return []

    def snapshot(self, run: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return to_arrays(_pick(self._learners, run).standing), {"kind": "jax"}

    def restore(
        self, run: int, state: TrainState, arrays: dict[str, np.ndarray], document: dict[str, Any]
    ) -> list[str]:
        if document.get("kind") != "jax":
            raise CheckpointError(
                "collector", document.get("kind"), "is not of a JAX environment", "Resume from another checkpoint."
            )
        template = jax.eval_shape(lambda learners: _pick(learners, 0).standing, self._learners)
        learner = Learner(state, from_arrays(template, arrays))
        self._learners = jax.tree.map(lambda stack, leaf: stack.at[run].set(leaf), self._learners, learner)
        return []

    def close(self) -> None:
        """There is nothing to close."""


@jax.jit
def _pick(learners: Learner, run: Int[Array, ""] | int) -> Learner:
    return jax.tree.map(lambda leaf: leaf[run], learners)
