"""Action masks: which choices an environment allows next, read in whatever form it gives them.

An environment gives one with each observation, as `info["action_mask"]` of `reset` and `step`, or else by a method
`action_masks()`. Its form follows the action space:

    Discrete          (n,)
    MultiDiscrete     (sum of nvec,), or a sequence of one array for each component
    MultiBinary       (2 n,) or (n, 2): for each bit whether it may be 0 and whether it may be 1
    Dict, Tuple       a tree like the space; a part that is None, or not in the dict, may be chosen freely, as a Box is

It is read as one row of flags, the leaves' side by side.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from inchworm import spaces
from inchworm.envs.pool import raised_error
from inchworm.errors import EnvironmentContractError, UnsupportedSpaceError
from inchworm.models.advice import Finding
from inchworm.spaces import EnvSpec

INFO_KEY = "action_mask"
METHOD = "action_masks"
ALWAYS_OR_NEVER = f"Give one in the info of every reset and step, or by a method {METHOD}(), or never."

UNREAD_MASK = Finding(
    "observation",
    f'its "{INFO_KEY}" forbids nothing: it is an observation like any other',
    f'Give it as info["{INFO_KEY}"] of reset and step too, or by a method {METHOD}().',
)
"""A mask that is among the observations alone."""


def shows_mask(spec: EnvSpec) -> bool:
    """Whether a mask of the actions is among the observations, by its name and size."""
    space, columns = spec.observation_space, spaces.num_mask_columns(spec.action_space)
    part = dict(space.spaces).get(INFO_KEY) if isinstance(space, spaces.Dict) else None
    return isinstance(part, spaces.Box | spaces.MultiBinary) and part.size == columns


class MaskRows:
    """The masks of N environments, a row of flags (num_mask_columns,) each."""

    def __init__(self, space: spaces.Space, num_envs: int) -> None:
        self.rows: np.ndarray | None = None
        """(N, num_mask_columns); None until the first mask, and for environments without masks."""
        self._read = MaskReader(space)
        self._num_envs = num_envs
        self._given: bool | None = None

    def write(self, index: int, found: Any, source: str) -> None:
        """Takes in what an environment gave, or None, with an observation on which it will be sent an action.

        Raises:
            EnvironmentContractError: it is no mask for this space, or masks come sometimes only.
        """
        given = found is not None
        if given != self._given:
            if self._given is not None:
                raise EnvironmentContractError(
                    INFO_KEY,
                    repr(found),
                    f"is what {source} gave, where there was {'no' if given else 'a'} mask before",
                    ALWAYS_OR_NEVER,
                )
            self._given = given
        if given:
            if self.rows is None:
                self.rows = np.ones((self._num_envs, self._read.num_columns), bool)
            self.rows[index] = self._read(found, source)

    def allow_all(self, index: Any) -> None:
        """For environments whose next action is ignored."""
        if self.rows is not None:
            self.rows[index] = True


class MaskReader:
    """Reads masks for actions of one space, and refuses what does not fit it."""

    def __init__(self, space: spaces.Space) -> None:
        self._space = space
        self._single = not isinstance(space, spaces.Dict | spaces.Tuple)
        self.num_columns = spaces.num_mask_columns(space)
        # Where the columns of each choice begin.
        self._starts = np.cumsum([0, *spaces.mask_groups(space)[:-1]])

    def __call__(self, found: Any, source: str) -> np.ndarray:
        """The mask as flags (num_mask_columns,), in an array of its own. Errors name `source`, which gave it.

        Raises:
            EnvironmentContractError: it does not fit the space, or leaves nothing to choose.
            UnsupportedSpaceError: actions of this space are not chosen among any.
        """
        if self.num_columns == 0:
            raise UnsupportedSpaceError(
                INFO_KEY,
                repr(found),
                f"is what {source} gave, and actions of a Box cannot be masked",
                f"Remove {INFO_KEY} from the environment's info, and its method {METHOD}().",
            )
        # The common case first: this runs at every environment step.
        mask = None
        if self._single and isinstance(found, np.ndarray) and found.shape == (self.num_columns,):
            mask = _flags(found)
        if mask is None:
            mask = np.concatenate(self._read(self._space, found, INFO_KEY, source))
        allowed = np.logical_or.reduceat(mask, self._starts)
        if not allowed.all():
            group = int(np.flatnonzero(~allowed)[0])
            where = f", for choice {group} of the {len(allowed)} that make an action" if len(allowed) > 1 else ""
            raise EnvironmentContractError(
                INFO_KEY,
                repr(found),
                f"is what {source} gave, and allows nothing{where}",
                "Allow one at least, or end the episode where nothing can be done.",
            )
        return mask

    def _read(self, space: spaces.Space, found: Any, place: str, source: str) -> list[np.ndarray]:
        """The flags of each part of a mask, one part after the other."""
        if found is None:
            return [np.ones(spaces.num_mask_columns(space), bool)]
        match space:
            case spaces.Dict(parts):
                names = [name for name, _ in parts]
                if not isinstance(found, Mapping) or not set(found) <= set(names):
                    raise _misfit(place, found, f"a dict with names among {names}", source)
                values = [(part, found.get(name), f"{place}[{name!r}]") for name, part in parts]
            case spaces.Tuple(parts):
                if not isinstance(found, tuple | list) or len(found) != len(parts):
                    raise _misfit(place, found, f"a tuple of {len(parts)}", source)
                values = [(part, found[i], f"{place}[{i}]") for i, part in enumerate(parts)]
            case _:
                return [_read_leaf(space, found, place, source)]
        return [flags for part, value, where in values for flags in self._read(part, value, where, source)]


def _read_leaf(leaf: spaces.Leaf, found: Any, place: str, source: str) -> np.ndarray:
    columns = spaces.num_mask_columns(leaf)
    shapes: list[tuple[int, ...]] = [(columns,)]
    wanted = f"flags or 0s and 1s of shape ({columns},)"
    match leaf:
        case spaces.Box():
            raise _misfit(place, found, "None, because a Box cannot be masked", source)
        case spaces.MultiDiscrete(nvec):
            wanted += f", or a sequence of arrays of lengths {', '.join(map(str, nvec))}"
        case spaces.MultiBinary(size=size):
            shapes.append((size, 2))
            wanted += f" or ({size}, 2)"
    try:
        values = np.asarray(_join(found, leaf.nvec) if isinstance(leaf, spaces.MultiDiscrete) else found)
    except (TypeError, ValueError):  # ragged, or without a length
        values = np.empty(0, object)
    flags = _flags(values) if values.shape in shapes else None
    if flags is None:
        raise _misfit(place, found, wanted, source)
    return flags.ravel()


def _flags(values: np.ndarray) -> np.ndarray | None:
    """The same as bools, in an array of its own; None if they are other than 0s and 1s."""
    if values.dtype.kind not in "biu":
        return None
    flags = values.astype(bool)
    return flags if values.dtype.kind == "b" or (flags == values).all() else None


def _join(found: Any, nvec: tuple[int, ...]) -> Any:
    """One array of a MultiDiscrete's mask that came as an array for each component; anything else as it came."""
    if isinstance(found, Sequence | np.ndarray) and len(found) == len(nvec):
        components = [np.asarray(part) for part in found]
        if [part.shape for part in components] == [(n,) for n in nvec]:
            return np.concatenate(components)
    return found


def _misfit(place: str, found: Any, wanted: str, source: str) -> EnvironmentContractError:
    array = isinstance(found, np.ndarray) and found.dtype != object
    return EnvironmentContractError(
        place,
        f"{found.dtype}{list(found.shape)} {found.tolist()}" if array else repr(found),
        f"is what {source} gave, and should be {wanted}",
        "Give a mask that fits the action space.",
    )


def gives_by_method(env: gymnasium.Env) -> bool:
    """Whether an environment, or one inside it, has a method that gives its mask."""
    return env.has_wrapper_attr(METHOD)


def find_mask(env: gymnasium.Env, info: Any, by_method: bool, source: str) -> Any:
    """What an environment gives as the mask of its next action, with the `info` of its last reset or step, or None.

    Raises:
        EnvironmentContractError: its method raised an error.
    """
    found = info.get(INFO_KEY) if isinstance(info, dict) else None
    if found is None and by_method:
        try:
            # Called if it can be, which is what gymnasium's vector environments do.
            found = env.get_wrapper_attr(METHOD)
            return found() if callable(found) else found
        except (Exception, SystemExit) as error:
            raise raised_error(METHOD, error, source) from error
    return found
