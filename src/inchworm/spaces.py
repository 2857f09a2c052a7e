"""Observation and action spaces as plain, hashable data.

The library's own description, so that networks and algorithms need no simulator's package: `envs/` translates
into it, policies carry it, and it is written to JSON with them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from inchworm.errors import CheckpointError


@dataclass(frozen=True)
class Box:
    """Arrays of one shape and dtype with a lower and an upper bound for each element.

    Bounds are a single number where all elements share it, else a flat tuple in C order.
    """

    shape: tuple[int, ...]
    dtype: str
    low: float | tuple[float, ...]
    high: float | tuple[float, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Discrete:
    """The integers start, start + 1, ..., start + n - 1. Policies count from zero."""

    n: int
    start: int = 0
    dtype: str = "int64"


@dataclass(frozen=True)
class Dict:
    """Named spaces, in the order in which their leaves are stored (sorted by name)."""

    spaces: tuple[tuple[str, "Space"], ...]


@dataclass(frozen=True)
class Tuple:
    """Spaces by position."""

    spaces: tuple["Space", ...]


Space = Box | Discrete | Dict | Tuple


@dataclass(frozen=True)
class EnvSpec:
    """What a policy must know of an environment."""

    observation_space: Space
    action_space: Space


def leaves(space: Space) -> list[Box | Discrete]:
    """The basic spaces inside, in the order in which JAX flattens their values."""
    match space:
        case Dict(spaces):
            return [leaf for _, inner in spaces for leaf in leaves(inner)]
        case Tuple(spaces):
            return [leaf for inner in spaces for leaf in leaves(inner)]
        case _:
            return [space]


def flatten(space: Space, value: Any) -> list[Any]:
    """The leaves of one value of the space, in the order of `leaves(space)`."""
    match space:
        case Dict(spaces):
            return [leaf for name, inner in spaces for leaf in flatten(inner, value[name])]
        case Tuple(spaces):
            return [leaf for inner, part in zip(spaces, value, strict=True) for leaf in flatten(inner, part)]
        case _:
            return [value]


def unflatten(space: Space, values: list[Any]) -> Any:
    """The value whose leaves are given: the inverse of `flatten`."""
    rest = iter(values)

    def build(part: Space) -> Any:
        match part:
            case Dict(spaces):
                return {name: build(inner) for name, inner in spaces}
            case Tuple(spaces):
                return tuple(build(inner) for inner in spaces)
            case _:
                return next(rest)

    return build(space)


def to_json(space: Space) -> dict[str, Any]:
    """The space as JSON; infinite bounds become the strings "inf" and "-inf"."""
    match space:
        case Box(shape, dtype, low, high):
            return {
                "type": "Box",
                "shape": list(shape),
                "dtype": dtype,
                "low": _bound_to_json(low),
                "high": _bound_to_json(high),
            }
        case Discrete(n, start, dtype):
            return {"type": "Discrete", "n": n, "start": start, "dtype": dtype}
        case Dict(spaces):
            return {"type": "Dict", "spaces": [[name, to_json(inner)] for name, inner in spaces]}
        case Tuple(spaces):
            return {"type": "Tuple", "spaces": [to_json(inner) for inner in spaces]}


def from_json(data: Any) -> Space:
    """The space that `to_json` wrote; `CheckpointError` for anything else."""
    try:
        match data["type"]:
            case "Box":
                shape = tuple(int(size) for size in data["shape"])
                return Box(shape, str(data["dtype"]), _bound_from_json(data["low"]), _bound_from_json(data["high"]))
            case "Discrete":
                return Discrete(int(data["n"]), int(data["start"]), str(data["dtype"]))
            case "Dict":
                return Dict(tuple((str(name), from_json(inner)) for name, inner in data["spaces"]))
            case "Tuple":
                return Tuple(tuple(from_json(inner) for inner in data["spaces"]))
            case unknown:
                raise ValueError(unknown)
    except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise CheckpointError(
            "space", str(data), "is no description of a space", "The file is damaged or newer than this version."
        ) from error


def _bound_to_json(bound: float | tuple[float, ...]) -> Any:
    if isinstance(bound, tuple):
        return [_bound_to_json(element) for element in bound]
    return bound if math.isfinite(bound) else str(bound)


def _bound_from_json(bound: Any) -> float | tuple[float, ...]:
    if isinstance(bound, list):
        return tuple(float(element) for element in bound)
    return float(bound)


def storage_dtype(leaf: Box | Discrete) -> np.dtype[Any]:
    """The dtype in which observations of a leaf are kept: never 64 bits, bytes stay bytes, large integers round."""
    if isinstance(leaf, Discrete):
        return np.dtype(np.int32)
    return np.dtype(leaf.dtype if leaf.dtype in ("uint8", "int8", "bool") else np.float32)


def action_door(space: Space) -> Callable[[np.ndarray], np.ndarray]:
    """The function that takes a batch of the policy's own actions (N, ...) to what environments are sent.

    A Box's actions are clipped to its bounds and take its shape and dtype; a Discrete's are moved to its start. The
    result is an array of its own: an environment may write into its action, and the rollout keeps the policy's.
    """
    if isinstance(space, Discrete):
        start, dtype = space.start, np.dtype(space.dtype)
        return lambda actions: (actions + start).astype(dtype)
    assert isinstance(space, Box)
    shape, dtype = space.shape, np.dtype(space.dtype)
    # In the space's own dtype: the float32 next to a bound of 0.1 lies outside a float64 Box.
    low, high = np.asarray(space.low, dtype), np.asarray(space.high, dtype)

    def clip(actions: np.ndarray) -> np.ndarray:
        clipped = np.minimum(np.maximum(actions.astype(dtype, copy=False), low), high)
        return clipped if len(shape) == 1 else clipped.reshape((len(actions), *shape))

    return clip
