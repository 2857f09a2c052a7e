"""Whether a JAX environment keeps its interface's promises, told from shapes and dtypes alone: nothing is computed."""

import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inchworm import spaces
from inchworm.envs.jax_env import JaxEnv, Step
from inchworm.envs.masks import UNREAD_MASK, shows_mask
from inchworm.envs.pool import first_line
from inchworm.errors import EnvironmentContractError, InchwormError
from inchworm.spaces import EnvSpec
from inchworm.warning import warn

FIT_FIX = "Make the observation fit spec.observation_space."


def check_jax_env(env: JaxEnv) -> None:
    """Traces `reset`, `step` and `action_mask` and holds what they return against `spec` and each other.

    Raises:
        EnvironmentContractError: one of them raised an error; observations do not fit the space; the reward or a flag
            is not one number; `step` changes the shapes, dtypes or structure of the state; the mask has not one flag
            for each choice.
    """
    spec, key = env.spec, jax.eval_shape(lambda: jax.random.key(0))
    start = _trace("reset", env.reset, key)
    if not isinstance(start, tuple | list) or len(start) != 2:
        raise _wrong("env.reset", start, "is what it returned", "Return (state, observation).")
    state, obs = start
    _check_observation(spec, obs, "reset()")
    actions = [
        jax.ShapeDtypeStruct(spaces.leaf_shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype))
        for leaf in spaces.leaves(spec.action_space)
    ]
    step = _trace("step", env.step, state, spaces.unflatten(spec.action_space, actions), key)
    if not all(hasattr(step, name) for name in Step._fields):
        raise _wrong("env.step", step, "is what it returned", f"Return Step({', '.join(Step._fields)}).")
    _check_observation(spec, step.obs, "step()")
    for name in ("reward", "terminated", "truncated"):
        value = getattr(step, name)
        if getattr(value, "shape", None) != () or not _is_real(value.dtype):
            raise _wrong(name, value, "is what step() returned, not one number or flag", f"Return {name} of shape ().")
    _check_state(state, step.state)
    action_mask = getattr(env, "action_mask", None)
    if action_mask is not None:
        _check_mask(spec, _trace("action_mask", action_mask, state))
    elif shows_mask(spec):
        warn(str(replace(UNREAD_MASK, fix="Give it by a method action_mask(state) too.")))


def _trace(method: str, call: Callable[..., Any], *given: Any) -> Any:
    """Shapes and dtypes of what the user's code returns; an error of its own is told with the line it comes from."""
    try:
        return jax.eval_shape(lambda *arguments: call(*arguments), *given)
    except InchwormError:
        raise
    except Exception as error:
        package = str(Path(jax.__file__).parent)
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((package, __file__))
        ]
        place = f"It comes from {frames[-1].filename}, line {frames[-1].lineno}. " if frames else ""
        raise EnvironmentContractError(
            f"env.{method}",
            f"{type(error).__name__}: {first_line(error)}",
            "was raised",
            f"{place}Under jax.jit values are not known: jnp.where and jax.lax.cond stand for an `if`.",
        ) from error


def _check_observation(spec: EnvSpec, obs: Any, source: str) -> None:
    try:
        found = spaces.flatten(spec.observation_space, obs)
    except (LookupError, TypeError, ValueError) as error:
        raise _wrong("observation", obs, f"is what {source} returned, and no part of its space", FIT_FIX) from error
    for leaf, value in zip(spaces.leaves(spec.observation_space), found, strict=True):
        shape, kept = spaces.leaf_shape(leaf), spaces.storage_dtype(leaf)
        fits = getattr(value, "shape", None) == shape and _is_real(value.dtype)
        if fits and kept.kind != "f":  # as bytes 256 would be 0
            fits = np.can_cast(np.dtype(value.dtype), kept, "same_kind")
        if not fits:
            kind = {"f": "numbers", "u": "bytes", "b": "bits"}.get(kept.kind, "whole numbers")
            problem = f"is what {source} returned, but its space says {kind} of shape {shape}"
            raise _wrong("observation", value, problem, FIT_FIX)


def _check_state(before: Any, after: Any) -> None:
    was, now = jax.tree.structure(before), jax.tree.structure(after)
    if was != now:
        problem = f"is what step() returned, where reset() returned {_shown(before)}"
        raise _wrong("state", after, problem, "Keep the state's structure through a step.")
    leaves = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in leaves:
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            problem = f"is what step() returned, where it was {_shown(old)}"
            raise _wrong(f"state{jax.tree_util.keystr(path)}", new, problem, "Keep shapes and dtypes through a step.")
        if not jnp.issubdtype(new.dtype, jax.dtypes.prng_key) and np.dtype(new.dtype).kind not in "biuf":
            name, fix = f"state{jax.tree_util.keystr(path)}", "Keep it as float32."
            raise _wrong(name, new, "is what step() returned, of a dtype that no checkpoint holds", fix)


def _check_mask(spec: EnvSpec, mask: Any) -> None:
    columns = spaces.num_mask_columns(spec.action_space)
    if mask is None:
        return
    if columns == 0:
        raise _wrong("action_mask", mask, "is given, and actions of a Box cannot be masked", "Remove the method.")
    if getattr(mask, "shape", None) != (columns,) or jnp.issubdtype(mask.dtype, np.floating):
        raise _wrong("action_mask", mask, "does not fit the action space", f"Return flags of shape ({columns},).")


def _is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (np.bool_, np.integer, np.floating))


def _wrong(field: str, value: Any, problem: str, fix: str) -> EnvironmentContractError:
    return EnvironmentContractError(field, _shown(value), problem, fix)


def _shown(value: Any) -> str:
    """Arrays by dtype and shape."""
    return str(jax.tree.map(lambda leaf: _Shown(f"{leaf.dtype}{list(leaf.shape)}"), value))


class _Shown(str):
    """Text that is shown without quotes inside containers."""

    def __repr__(self) -> str:
        return str(self)
