"""Observation and action spaces as plain, hashable data.

The library's own description, so that networks and algorithms need no simulator's package: `envs/` translates
into it, policies carry it, and it is written to JSON with them.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from operator import and_, index, itemgetter
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from inchworm.errors import CheckpointError, UnsupportedSpaceError
from inchworm.types import AnyArray


@dataclass(frozen=True)
class Box:
    """Arrays of one shape and dtype with a lower and an upper bound for each element.

    Bounds are a single number where all elements share it, else a flat tuple in C order; arrays become such.
    """

    shape: tuple[int, ...]
    dtype: str
    low: float | tuple[float, ...]
    high: float | tuple[float, ...]

    def __post_init__(self) -> None:
        with _reading(self):
            shape = _sizes(self.shape)
            low, high = (_read_bound(bound, math.prod(shape)) for bound in (self.low, self.high))
            if not np.all(np.less_equal(low, high)):
                raise ValueError("low is not everywhere at most high")
            _set(self, shape=shape, dtype=np.dtype(self.dtype).name, low=low, high=high)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Discrete:
    """The integers start, start + 1, ..., start + n - 1. Policies count from zero."""

    n: int
    start: int = 0
    dtype: str = "int64"

    def __post_init__(self) -> None:
        with _reading(self):
            _set(self, n=_choices(self.n), start=index(self.start), dtype=np.dtype(self.dtype).name)


@dataclass(frozen=True)
class MultiDiscrete:
    """Integers side by side, each with a number of choices and a start of its own (flat, in C order)."""

    nvec: tuple[int, ...]
    shape: tuple[int, ...]
    start: tuple[int, ...]
    dtype: str = "int64"

    def __post_init__(self) -> None:
        with _reading(self):
            nvec, start, shape = tuple(map(_choices, self.nvec)), _integers(self.start), _sizes(self.shape)
            if not len(nvec) == len(start) == math.prod(shape):
                raise ValueError(f"{len(nvec)} numbers of choices and {len(start)} starts for the shape {shape}")
            _set(self, nvec=nvec, shape=shape, start=start, dtype=np.dtype(self.dtype).name)


@dataclass(frozen=True)
class MultiBinary:
    """Arrays of bits."""

    shape: tuple[int, ...]
    dtype: str = "int8"

    def __post_init__(self) -> None:
        with _reading(self):
            _set(self, shape=_sizes(self.shape), dtype=np.dtype(self.dtype).name)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Dict:
    """Named spaces, in the order in which their leaves are stored (sorted by name). A dict becomes such."""

    spaces: tuple[tuple[str, "Space"], ...]

    def __post_init__(self) -> None:
        with _reading(self):
            pairs = dict(self.spaces).items()
            _check_not_empty(pairs)
            for name, part in pairs:
                if not isinstance(name, str):
                    raise TypeError(f"{name!r} is no text")
                _check_space(part)
            _set(self, spaces=tuple(sorted(pairs, key=itemgetter(0))))


@dataclass(frozen=True)
class Tuple:
    """Spaces by position."""

    spaces: tuple["Space", ...]

    def __post_init__(self) -> None:
        with _reading(self):
            _check_not_empty(self.spaces)
            for part in self.spaces:
                _check_space(part)
            _set(self, spaces=tuple(self.spaces))


Leaf = Box | Discrete | MultiDiscrete | MultiBinary
Space = Leaf | Dict | Tuple

Squash = Literal["clip", "tanh", "unit"]
"""How a policy's own numbers become a Box's:

    clip    clipped to the bounds
    tanh    low + (tanh(u) + 1) / 2 (high - low)
    unit    low + x (high - low), for x in (0, 1)
"""


@dataclass(frozen=True)
class EnvSpec:
    """What a policy must know of an environment."""

    observation_space: Space
    action_space: Space

    def __post_init__(self) -> None:
        with _reading(self):
            _check_space(self.observation_space)
            _check_space(self.action_space)


@contextlib.contextmanager
def _reading(space: Any) -> Iterator[None]:
    """Tells what is wrong with a description of a space."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UnsupportedSpaceError(
            type(space).__name__,
            ", ".join(f"{name} = {value!r}" for name, value in vars(space).items()),
            f"is no description of a space: {error}",
            "Give what inchworm.spaces says of its fields.",
        ) from error


def _set(space: Any, **fields: Any) -> None:
    """Fields in their plain form, in which a description is hashed, compared and written to JSON."""
    for name, value in fields.items():
        object.__setattr__(space, name, value)


def _check_space(part: Any) -> None:
    if not isinstance(part, Space):
        raise TypeError(f"{part!r} is none of Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple in it")


def _integers(values: Any) -> tuple[int, ...]:
    return tuple(map(index, values))


def _sizes(shape: Any) -> tuple[int, ...]:
    """The lengths of an array's axes, none of which may be without a number."""
    sizes = _integers(shape)
    _check_not_empty(range(min(sizes, default=1)))
    return sizes


def _check_not_empty(parts: Sized) -> None:
    if not len(parts):
        raise ValueError("there is nothing in it")


def _choices(number: Any) -> int:
    if index(number) < 1:
        raise ValueError(f"{number} choices")
    return index(number)


def _read_bound(bound: Any, size: int) -> float | tuple[float, ...]:
    """One number, or as many as there are elements."""
    numbers = np.asarray(bound, np.float64)
    if np.isnan(numbers).any():
        raise ValueError("a bound is NaN")
    if numbers.ndim == 0:
        return float(numbers)
    if numbers.size != size:
        raise ValueError(f"{numbers.size} bounds for {size} numbers")
    return tuple(numbers.ravel().tolist())


def leaves(space: Space) -> list[Leaf]:
    """The basic spaces inside, in the order in which JAX flattens their values."""
    match space:
        case Dict(spaces):
            return [leaf for _, inner in spaces for leaf in leaves(inner)]
        case Tuple(spaces):
            return [leaf for inner in spaces for leaf in leaves(inner)]
        case _:
            return [space]


def leaf_shape(leaf: Leaf) -> tuple[int, ...]:
    """The shape of a leaf's values."""
    return () if isinstance(leaf, Discrete) else leaf.shape


def bounds(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of each number of a Box, flat."""
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), box.size) for bound in (box.low, box.high))
    return low, high


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


def form(space: Space, *, bounds: bool) -> Any:
    """A space without its dtypes, and without a Box's bounds if so asked: what two simulators of one task agree on."""

    def plain(leaf: Leaf) -> Leaf:
        leaf = replace(leaf, dtype="uint8" if leaf.dtype == "uint8" else "float32")
        return leaf if bounds or not isinstance(leaf, Box) else replace(leaf, low=0.0, high=0.0)

    return unflatten(space, [plain(leaf) for leaf in leaves(space)])


def describe(space: Space) -> str:
    """A space in a few words."""
    match space:
        case Box(shape, dtype):
            return f"Box {shape}, {dtype}" + f", {_spread(space.low)} to {_spread(space.high)}"
        case Discrete(n, start):
            return f"Discrete, {n} choices" + (f" from {start}" if start else "")
        case MultiDiscrete(nvec, shape, start):
            choices = ", ".join(map(str, nvec)) if len(nvec) <= 6 else f"{min(nvec)} to {max(nvec)}"
            return f"MultiDiscrete {shape}, {choices} choices" + (f" from {start}" if any(start) else "")
        case MultiBinary(shape):
            return f"MultiBinary {shape}"
        case Dict(parts):
            return "Dict of " + "; ".join(f"{name}: {describe(part)}" for name, part in parts)
        case Tuple(parts):
            return "Tuple of " + "; ".join(describe(part) for part in parts)


def _spread(bound: float | tuple[float, ...]) -> str:
    """A bound: one number, a few, or between which they are."""
    if isinstance(bound, tuple) and len(bound) <= 6:
        return "[" + ", ".join(f"{value:.3g}" for value in bound) + "]"
    return f"{bound:.3g}" if not isinstance(bound, tuple) else f"[{min(bound):.3g} ... {max(bound):.3g}]"


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
        case MultiDiscrete(nvec, shape, start, dtype):
            lists = {"nvec": list(nvec), "shape": list(shape), "start": list(start)}
            return {"type": "MultiDiscrete", **lists, "dtype": dtype}
        case MultiBinary(shape, dtype):
            return {"type": "MultiBinary", "shape": list(shape), "dtype": dtype}
        case Dict(spaces):
            return {"type": "Dict", "spaces": [[name, to_json(inner)] for name, inner in spaces]}
        case Tuple(spaces):
            return {"type": "Tuple", "spaces": [to_json(inner) for inner in spaces]}


def from_json(data: Any) -> Space:
    """The space that `to_json` wrote; `CheckpointError` for anything else."""
    try:
        match data["type"]:
            case "Box":
                low, high = _bound_from_json(data["low"]), _bound_from_json(data["high"])
                return Box(tuple(data["shape"]), str(data["dtype"]), low, high)
            case "Discrete":
                return Discrete(int(data["n"]), int(data["start"]), str(data["dtype"]))
            case "MultiDiscrete":
                nvec, shape, start = (tuple(data[name]) for name in ("nvec", "shape", "start"))
                return MultiDiscrete(nvec, shape, start, str(data["dtype"]))
            case "MultiBinary":
                return MultiBinary(tuple(data["shape"]), str(data["dtype"]))
            case "Dict":
                return Dict(tuple((str(name), from_json(inner)) for name, inner in data["spaces"]))
            case "Tuple":
                return Tuple(tuple(from_json(inner) for inner in data["spaces"]))
            case unknown:
                raise ValueError(unknown)
    except (KeyError, TypeError, ValueError, RecursionError, OverflowError, UnsupportedSpaceError) as error:
        raise CheckpointError(
            "space", str(data), "is no description of a space", "The file is damaged or newer than this version."
        ) from error


def spec_to_json(spec: EnvSpec) -> dict[str, Any]:
    """Both spaces as JSON, by name."""
    return {"observation_space": to_json(spec.observation_space), "action_space": to_json(spec.action_space)}


def spec_from_json(document: dict[str, Any]) -> EnvSpec:
    """What `spec_to_json` wrote, perhaps among other things; `KeyError` if it is not there."""
    return EnvSpec(from_json(document["observation_space"]), from_json(document["action_space"]))


def _bound_to_json(bound: float | tuple[float, ...]) -> Any:
    if isinstance(bound, tuple):
        return [_bound_to_json(element) for element in bound]
    return bound if math.isfinite(bound) else str(bound)


def _bound_from_json(bound: Any) -> float | tuple[float, ...]:
    if isinstance(bound, list):
        return tuple(float(element) for element in bound)
    return float(bound)


def storage_dtype(leaf: Leaf) -> np.dtype[Any]:
    """The dtype in which observations of a leaf are kept: never 64 bits, bytes stay bytes, large integers round."""
    if isinstance(leaf, Discrete | MultiDiscrete):
        return np.dtype(np.int32)
    return np.dtype(leaf.dtype if leaf.dtype in ("uint8", "int8", "bool") else np.float32)


def limits(leaf: Leaf) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest whole number of a leaf that holds such: of choices, bits, or a Box of bytes."""
    match leaf:
        case Discrete(n, start):
            return np.array(start), np.array(start + n - 1)
        case MultiDiscrete(nvec, shape, start):
            low = np.reshape(start, shape)
            return low, low + np.reshape(nvec, shape) - 1
        case Box(dtype="uint8" | "int8" as dtype):
            return np.array(np.iinfo(dtype).min, int), np.array(np.iinfo(dtype).max, int)
        case _:
            return np.array(0), np.array(1)


def own_action(leaf: Leaf) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of the policy's own action for a leaf: flat, choices counted from zero."""
    match leaf:
        case Discrete():
            return (), np.dtype(np.int32)
        case MultiDiscrete(nvec):
            return (len(nvec),), np.dtype(np.int32)
        case MultiBinary():
            return (leaf.size,), np.dtype(np.int32)
        case Box():
            return (leaf.size,), np.dtype(np.float32)


def mask_groups(space: Space) -> list[int]:
    """The numbers of mask columns that belong to one choice each, in the order of the leaves.

    A Discrete is one choice among n, a MultiDiscrete one for each component, a MultiBinary one among {0, 1} for each
    bit. A Box has none.
    """
    groups: list[int] = []
    for leaf in leaves(space):
        match leaf:
            case Discrete(n):
                groups.append(n)
            case MultiDiscrete(nvec):
                groups.extend(nvec)
            case MultiBinary():
                groups.extend([2] * leaf.size)
    return groups


def allows_something(space: Space, mask: AnyArray) -> AnyArray:
    """Whether masks (..., M) leave at least one option of every choice; False is no mask an action can obey."""
    ends = np.cumsum(mask_groups(space)).tolist()
    choices: list[Any] = [mask[..., start:end].any(axis=-1) for start, end in pairwise([0, *ends])]
    return reduce(and_, choices)


def num_mask_columns(space: Space) -> int:
    """Length of the vector that says which choices of an action space are allowed."""
    return sum(mask_groups(space))


def check_squash(space: Space, squash: Squash) -> None:
    """Raises `UnsupportedSpaceError` for a Box without the finite bounds that "tanh" and "unit" need."""
    for leaf in leaves(space):
        if squash != "clip" and isinstance(leaf, Box):
            low, high = (np.asarray(bound, _wide(np.dtype(leaf.dtype))) for bound in (leaf.low, leaf.high))
            with np.errstate(over="ignore"):
                finite = np.isfinite(high - low).all()
            if not finite:
                raise UnsupportedSpaceError(
                    "action_space",
                    repr(leaf),
                    "has no finite range, over which this policy would spread its actions",
                    "Use the Gaussian, which is clipped, or give the Box finite bounds.",
                )


def action_door(space: Space, squash: Squash) -> Callable[[list[Any]], list[Any]]:
    """The function that takes a batch of the policy's own actions to what environments are sent, leaf by leaf.

    A policy's own actions are flat and count from zero: a Discrete's int32 (N,), a MultiDiscrete's int32 (N, K), a
    MultiBinary's int32 bits (N, n), a Box's float32 (N, size). The environments' have the leaf's shape, dtype, start
    and bounds. The arrays are new ones: an environment may write into its action, and the rollout keeps the policy's.

    Raises:
        UnsupportedSpaceError: a Box has no bounds that "tanh" and "unit" need.
    """
    check_squash(space, squash)
    numpy_doors, jax_doors = (
        [_leaf_door(leaf, squash, to_dtype(np.dtype(leaf.dtype)), xp) for leaf in leaves(space)]
        for xp, to_dtype in ((np, np.dtype), (jnp, _narrow))
    )
    if len(numpy_doors) == 1:  # the common case, run between environment steps
        (numpy_door,), (jax_door,) = numpy_doors, jax_doors
        return lambda own: [(numpy_door if isinstance(own[0], np.ndarray) else jax_door)(own[0])]

    def door(own: list[Any]) -> list[Any]:
        doors = numpy_doors if isinstance(own[0], np.ndarray) else jax_doors
        return [leaf_door(actions) for leaf_door, actions in zip(doors, own, strict=True)]

    return door


def _leaf_door(leaf: Leaf, squash: Squash, dtype: np.dtype[Any], xp: Any) -> Callable[[AnyArray], AnyArray]:
    """The door of one leaf, in a dtype and for the arrays of a namespace."""
    shape = leaf_shape(leaf)
    door = _box_door(leaf, squash, dtype, xp) if isinstance(leaf, Box) else _choice_door(leaf, dtype)
    if len(shape) == 1 or isinstance(leaf, Discrete):
        return door
    return lambda own: door(own).reshape((len(own), *shape))


def _choice_door(leaf: Discrete | MultiDiscrete | MultiBinary, dtype: np.dtype[Any]) -> Callable[[AnyArray], AnyArray]:
    start = np.asarray(0 if isinstance(leaf, MultiBinary) else leaf.start).astype(dtype)
    if not start.any():
        return lambda choices: choices.astype(dtype)
    return lambda choices: choices.astype(dtype) + start


def _box_door(leaf: Box, squash: Squash, dtype: np.dtype[Any], xp: Any) -> Callable[[AnyArray], AnyArray]:
    # In the space's own dtype: the float32 next to a bound of 0.1 lies outside a float64 Box.
    low, high = np.asarray(leaf.low, dtype), np.asarray(leaf.high, dtype)
    minimum, maximum, tanh = xp.minimum, xp.maximum, xp.tanh

    def clip(numbers: AnyArray) -> AnyArray:
        return minimum(maximum(numbers.astype(dtype, copy=False), low), high)

    if squash == "clip":
        return clip
    wide = _wide(dtype)
    start, width = low.astype(wide), high.astype(wide) - low.astype(wide)

    def spread(numbers: AnyArray) -> AnyArray:
        part = numbers.astype(wide, copy=False)
        return clip(start + ((tanh(part) + 1) / 2 if squash == "tanh" else part) * width)

    return spread


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which a Box's range is computed: a difference of float16 bounds may not be one itself."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _narrow(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What stands for a dtype in JAX, which has no 64 bits."""
    return np.dtype(f"{dtype.kind}4") if dtype.itemsize == 8 else dtype
