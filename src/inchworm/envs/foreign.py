"""What the adapters of other libraries share: their ids, arguments and errors, as errors of this library."""

import contextlib
import re
import subprocess
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from inchworm.checks import check_flag, check_integer, check_number
from inchworm.envs.mujoco_warnings import mujoco_warns
from inchworm.envs.pool import first_line
from inchworm.errors import ConfigError, EnvironmentContractError, InchwormError, MissingDependencyError
from inchworm.suggestions import did_you_mean

AT_LEAST_ONE = {
    *("max_episode_steps", "max_steps_in_episode", "max_num_frames_per_episode", "episode_length"),
    *("frameskip", "frame_skip", "n_frames", "stack_num", "frame_stack", "img_height", "img_width"),
}
"""Arguments that are time limits or sizes, by whatever name a library has for them."""


@contextlib.contextmanager
def importing(backend: str, extra: str) -> Iterator[None]:
    """Inside it a package that is not installed raises `MissingDependencyError`, which names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            "backend", backend, f"needs a package that is not installed ({error})", f'pip install "inchworm[{extra}]".'
        ) from error


def check_known_id(env: str, known: Collection[str], whose: str, examples: str = "one of its ids") -> None:
    """`EnvironmentContractError`, with the nearest id, unless an id is among those known."""
    if env not in known:
        raise EnvironmentContractError(
            "env",
            env,
            f"is no environment that {whose} knows" + did_you_mean(env, known),
            f"Give {examples}, or another backend.",
        )


def check_kwargs(
    kwargs: Mapping[str, Any], defaults: Mapping[str, Any], reserved: Collection[str] = (), closed: bool = True
) -> dict[str, Any]:
    """Arguments held against the library's defaults, of whose kind each is made.

    Raises:
        ConfigError: one is `reserved`, as Inchworm sets it; is of another kind than its default; or is none that has a
            default, where these are all there are (`closed`).
    """
    checked = {}
    for name, value in kwargs.items():
        if name in reserved:
            raise ConfigError(
                _field(name), value, "is set by Inchworm itself", "Leave it out; num_envs and seed are the run's."
            )
        if closed and name not in defaults:
            known = ", ".join(other for other in defaults if other not in reserved)
            raise ConfigError(
                _field(name),
                value,
                "is no argument of the environment" + did_you_mean(name, defaults),
                f"It takes {known}.",
            )
        checked[name] = _like(name, value, defaults[name]) if name in defaults else value
    return checked


def _like(name: str, value: Any, default: Any) -> Any:
    """A value in the kind of its default; any that is not a number, a flag or a text is left as it is."""
    field = _field(name)
    match default:
        case _ if name in AT_LEAST_ONE:
            number = check_integer(field, value, 1, 2**31 - 1)
            return float(number) if isinstance(default, float) else number
        case bool():
            return check_flag(field, value)
        case int():
            return check_integer(field, value, -(2**31), 2**31 - 1)
        case float():
            return check_number(field, value)
        case str() if not isinstance(value, str):
            raise ConfigError(field, value, "is no text", f"Give one like {default!r}.")
        case jax.Array():
            array = None
            with contextlib.suppress(TypeError, ValueError):
                array = np.asarray(value, default.dtype)
            if array is None or array.shape != default.shape:
                problem = f"is not {default.size} numbers of shape {default.shape}"
                raise ConfigError(field, value, problem, f"Give some like {default.tolist()}.")
            return jax.numpy.asarray(array)
    return value


@contextlib.contextmanager
def constructing(env: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Inside it an error of another library, which makes an environment, becomes one of this library.

    Raises:
        ConfigError: keyword arguments were given, and the error may be theirs.
        EnvironmentContractError: the environment cannot be made, as when a download fails.
    """
    with mujoco_warns():
        try:
            yield
        except InchwormError:
            raise
        except (OSError, subprocess.SubprocessError) as error:
            raise _unmade(env, error, "See that what it downloads or reads can be had; then try again.") from error
        except Exception as error:
            if not kwargs:
                raise _unmade(env, error, "Choose another environment.") from error
            # The argument that the message names, or the only one there is.
            named = [name for name in kwargs if len(kwargs) == 1 or re.search(rf"\b{re.escape(name)}\b", str(error))]
            field, value = (_field(named[0]), kwargs[named[0]]) if len(named) == 1 else ("env_kwargs", dict(kwargs))
            raise ConfigError(
                field, value, f"does not fit {env} ({_what(error)})", "Check the environment's arguments."
            ) from error


def _field(name: str) -> str:
    return f"env_kwargs.{name}"


def _unmade(env: str, error: Exception, fix: str) -> EnvironmentContractError:
    return EnvironmentContractError("env", env, f"cannot be made ({_what(error)})", fix)


def _what(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {first_line(error).rstrip('.')}", 160)
