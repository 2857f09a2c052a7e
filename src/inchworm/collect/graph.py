"""JAX environments: rollout and update in one compiled call, several iterations and several runs at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from inchworm.algorithms.iteration import Iterate
from inchworm.algorithms.settings import Continuation
from inchworm.algorithms.state import TrainState, collection_key
from inchworm.collect import tail as tails
from inchworm.collect.acting import prepare
from inchworm.collect.collector import Outcome
from inchworm.collect.rollout import Standing, TracedRollout, at_start
from inchworm.envs.jax_env import first_key
from inchworm.envs.pool import environment_seed
from inchworm.envs.traced import Copies
from inchworm.errors import CheckpointError
from inchworm.numerics.devices import mesh_of, on, place
from inchworm.numerics.tree import from_arrays, to_arrays
from inchworm.types import Episodes, Metrics, PRNGKey

Advance = Callable[[TrainState, Standing], tuple[TrainState, Standing, Metrics, Episodes]]
"""One iteration: from the training state and the environments' to those after it."""


class Learner(NamedTuple):
    """A run's learner and its environments."""

    state: TrainState
    standing: Standing


def make_advance(
    rollout: TracedRollout, iterate: Iterate, shape: tuple[int, int], continuation: Continuation | None
) -> Advance:
    """An iteration of T steps of N environments as one function.

    With a `continuation` returns that the horizon cuts are continued to their end.
    """
    horizon, num_envs = shape

    def collect(state: TrainState, key: PRNGKey, now: Standing, in_batch: bool) -> Any:
        normalizers, noise = prepare(state.model, state.obs_stats, key, shape)
        return rollout(state.model, normalizers, noise, now, in_batch)

    def advance(state: TrainState, now: Standing) -> tuple[TrainState, Standing, Metrics, Episodes]:
        key = collection_key(state.key, state.iteration)
        collected, episodes, now = collect(state, key, now, True)
        if continuation is None:
            new_state, metrics = iterate(state, collected)
            return new_state, now, metrics, episodes

        def unfinished(carry: tuple[Any, Standing, Any]) -> Bool[Array, ""]:
            tail, _, steps = carry
            return jnp.any(tail.alive) & (steps < tails.MAX_TAIL_STEPS)

        def go_on(carry: tuple[Any, Standing, Any]) -> tuple[Any, Standing, Any]:
            tail, now, steps = carry
            steps += horizon
            *more, now = collect(state, jax.random.fold_in(key, steps), now, False)
            return tails.extend(tail, *more, continuation), now, steps

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
    """The compiled functions of a run, or of several that are stacked, (R, ...)."""

    begin: Callable[[PRNGKey, PRNGKey], Learner]
    """From the keys of the learner and of its environments (N,)."""
    advance: Callable[[Learner, Any], tuple[Learner, Any]]
    """A number of iterations, and what each came to."""
    capacity: int
    """The most iterations of one call."""


def make_programs(
    init: Callable[[PRNGKey], TrainState], envs: Copies, advance: Advance, capacity: int, stacked: bool = False
) -> Programs:
    """Compiles the iterations of a run, or of several together."""

    def begin(key: PRNGKey, env_keys: PRNGKey) -> Learner:
        state = init(key)
        return Learner(state, at_start(state.model, *envs.start(env_keys)))

    chunk = make_chunk(advance, capacity)
    if not stacked:
        return Programs(jax.jit(begin), jax.jit(chunk), capacity)
    # One after the other, because what `init` decomposes must not depend on how many there are.
    all_begin = jax.jit(lambda keys, env_keys: jax.lax.map(lambda each: begin(*each), (keys, env_keys)))
    return Programs(all_begin, jax.jit(jax.vmap(chunk)), capacity)


def on_devices(programs: Programs, devices: Sequence[Any], num_envs: int) -> Programs:
    """The same programs with a run's environments divided between several devices."""
    mesh = mesh_of(devices)
    begin, advance = on(mesh, programs.begin), on(mesh, programs.advance)

    def placed_begin(*keys: PRNGKey) -> Learner:
        return begin(*place(mesh, keys))

    def placed_advance(learner: Learner, count: Any) -> tuple[Learner, Any]:
        return advance(Learner(place(mesh, learner.state), place(mesh, learner.standing, 0, num_envs)), count)

    return Programs(placed_begin, placed_advance, programs.capacity)


class GraphCollector:
    """Runs that stay in JAX between compiled calls, each with calls of its own.

    On several devices runs advance at the same time; on CPU devices that needs a thread for each, because there a call
    returns when it is done.
    """

    def __init__(
        self, programs: Programs, seeds: Sequence[int], num_envs: int, devices: Sequence[Any] | None = None
    ) -> None:
        """Starts a run for each seed, of so many environments; they take turns on the devices, by default the first."""
        self.capacity = programs.capacity
        self._programs = programs
        self._devices = list(devices or jax.devices()[:1])
        self._learners = []
        for run, seed in enumerate(seeds):
            keys = jax.device_put(_keys(seed, num_envs), self._devices[run % len(self._devices)])
            self._learners.append(programs.begin(*keys))
        self._before, self._counts = list(self._learners), [0] * len(seeds)
        self._threads = ThreadPoolExecutor(len(self._devices))

    def advance(self, counts: Sequence[int]) -> list[list[Outcome]]:
        self._before, self._counts = list(self._learners), list(counts)
        return [_outcomes(count, rows) for count, rows in zip(counts, self._call(counts), strict=True)]

    def repeat(self, counts: Sequence[int]) -> None:
        others = [run for run, count in enumerate(counts) if count != self._counts[run]]
        for run in others:
            self._learners[run] = self._before[run]
        self._call([count if run in others else 0 for run, count in enumerate(counts)])
        self._counts = list(counts)

    def _call(self, counts: Sequence[int]) -> list[Any]:
        """So many more iterations of each run, and the rows that they gave; None of a run that is left alone."""
        rows: list[Any] = [None] * len(counts)

        def advance_on(device: int) -> None:
            for run in range(device, len(counts), len(self._devices)):
                if counts[run]:
                    self._learners[run], found = self._programs.advance(self._learners[run], np.int32(counts[run]))
                    rows[run] = jax.device_get(found)

        if len(self._devices) == 1:
            advance_on(0)
        else:
            list(self._threads.map(advance_on, range(len(self._devices))))
        return rows

    def state(self, run: int) -> TrainState:
        return jax.device_put(self._learners[run].state, self._devices[run % len(self._devices)])

    def moved(self, run: int) -> list[str]:
        """Nothing: acting and updating read the same arrays."""
        return []

    def snapshot(self, run: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return to_arrays(self._learners[run].standing), {"kind": "jax", "stacked": 1}

    def restore(
        self, run: int, state: TrainState, arrays: dict[str, np.ndarray], document: dict[str, Any]
    ) -> list[str]:
        stacked = _stacked(document)
        learner = Learner(state, from_arrays(self._learners[run].standing, arrays))
        self._learners[run] = jax.device_put(learner, self._devices[run % len(self._devices)])
        if stacked == 1:
            return []
        return [f"the run was computed together with others, {stacked} in all, which alone rounds differently"]

    def close(self) -> None:
        self._threads.shutdown()


class StackedCollector:
    """Runs that advance together as one more axis of every array, as accelerators like it."""

    def __init__(self, programs: Programs, seeds: Sequence[int], num_envs: int) -> None:
        """Starts a run for each seed, of so many environments."""
        self.capacity = programs.capacity
        self._programs = programs
        keys = [_keys(seed, num_envs) for seed in seeds]
        self._learners = self._before = programs.begin(*(jnp.stack(part) for part in zip(*keys, strict=True)))

    def advance(self, counts: Sequence[int]) -> list[list[Outcome]]:
        self._before = self._learners
        rows = self._call(counts)
        return [_outcomes(count, jax.tree.map(lambda leaf: leaf[run], rows)) for run, count in enumerate(counts)]  # noqa: B023

    def repeat(self, counts: Sequence[int]) -> None:
        self._learners = self._before
        self._call(counts)

    def _call(self, counts: Sequence[int]) -> Any:
        self._learners, rows = self._programs.advance(self._learners, np.asarray(counts, np.int32))
        return jax.device_get(rows)

    def state(self, run: int) -> TrainState:
        return _pick(self._learners, run).state

    def moved(self, run: int) -> list[str]:
        """Nothing: acting and updating read the same arrays."""
        return []

    def snapshot(self, run: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        stacked = len(self._learners.state.iteration)
        return to_arrays(_pick(self._learners, run).standing), {"kind": "jax", "stacked": stacked}

    def restore(
        self, run: int, state: TrainState, arrays: dict[str, np.ndarray], document: dict[str, Any]
    ) -> list[str]:
        raise AssertionError("only a single run is taken up, and that is never stacked")

    def close(self) -> None:
        """There is nothing to close."""


def _keys(seed: int, num_envs: int) -> tuple[PRNGKey, PRNGKey]:
    """The keys of a run's learner and of its environments."""
    env_keys = [first_key(environment_seed(seed, index, 0)) for index in range(num_envs)]
    return jax.random.key(seed), jnp.stack(env_keys)


def _outcomes(count: int, rows: tuple[dict[str, np.ndarray], Episodes] | None) -> list[Outcome]:
    """The first of the rows that a call has stacked, one by one."""
    if rows is None:
        return []
    metrics, episodes = rows
    columns = [values[:count].tolist() for values in metrics.values()]
    return [
        Outcome(dict(zip(metrics, row, strict=True)), Episodes(*(leaf[index] for leaf in episodes)))
        for index, row in enumerate(zip(*columns, strict=True))
    ]


def _stacked(document: dict[str, Any]) -> int:
    """How many runs were one stack when a snapshot of one of them was made."""
    try:
        if document["kind"] != "jax":
            raise ValueError(document["kind"])
        return int(document["stacked"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            "collector", repr(error), "is not of a JAX environment", "Resume from another checkpoint."
        ) from error


@jax.jit
def _pick(learners: Learner, run: Int[Array, ""] | int) -> Learner:
    return jax.tree.map(lambda leaf: leaf[run], learners)
