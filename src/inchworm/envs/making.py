"""How Gymnasium's environments are made, and what is said where one cannot be."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium

from inchworm.envs.mujoco_warnings import mujoco_warns
from inchworm.envs.pool import first_line
from inchworm.errors import EnvironmentContractError, InchwormError, MissingDependencyError
from inchworm.suggestions import did_you_mean

EnvFactory = Callable[[], gymnasium.Env]

EXTRAS = {"mujoco": "mujoco", "box2d": "box2d", "Box2D": "box2d", "pygame": "classic"}
"""The extra of this package that installs a module an environment asks for."""
RENDERERS = {"osmesa": "libosmesa6", "egl": "libegl1", "glfw": "libglfw3, which also needs a display"}
"""What MUJOCO_GL may name, and Debian's package for it."""


@dataclass(frozen=True)
class Factory:
    """Makes the environment of an id, of `module:factory`, of a class or of a function.

    Raises:
        EnvironmentContractError: there is no such environment, or making it raises an error.
        MissingDependencyError: its package, or the renderer that it loads, is not installed.
    """

    origin: Any
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        with mujoco_warns():
            try:
                return self._make()
            except InchwormError:
                raise
            except (Exception, SystemExit) as error:
                raise self._unmade(error) from error

    def __repr__(self) -> str:
        return name_of(self.origin)

    def _make(self) -> Any:
        if not isinstance(self.origin, str):
            return self.origin(**self.kwargs)
        module_name, colon, attribute = self.origin.partition(":")
        factory = getattr(importlib.import_module(module_name), attribute, None) if colon else None
        if factory is not None:
            return factory(**self.kwargs)
        # Our own checks see every step; gymnasium's would only see the first.
        env = gymnasium.make(self.origin, disable_env_checker=True, **self.kwargs)
        mode, modes = self.kwargs.get("render_mode"), env.metadata.get("render_modes")
        if mode is not None and modes is not None and mode not in modes:  # of which gymnasium only warns
            env.close()
            raise EnvironmentContractError(
                "render_mode", mode, f"is no mode of {self.origin}", f"Give one of {', '.join(modes)}, or leave it out."
            )
        return env

    def _unmade(self, error: BaseException) -> InchwormError:
        """What keeps it from being made, by the error that was met."""
        name, what = repr(self), f"{type(error).__name__}: {first_line(error)}"
        renderer = os.environ.get("MUJOCO_GL")
        if renderer is not None and _loads_a_renderer(error):
            problem = "names a renderer that is not installed here" if renderer in RENDERERS else "names no renderer"
            package = (
                f"install it (Debian: apt-get install {RENDERERS[renderer]}), or " if renderer in RENDERERS else ""
            )
            fix = f"{package}unset MUJOCO_GL; MUJOCO_GL=disable trains without pictures."
            return MissingDependencyError("MUJOCO_GL", renderer, f"{problem} ({what})", fix[0].upper() + fix[1:])
        match error:
            case gymnasium.error.DependencyNotInstalled():
                return _missing_package(name, str(error))
            case ModuleNotFoundError() if isinstance(self.origin, str) and _is_own(error.name, self.origin):
                return _missing_module(self.origin, str(error.name))
            case ModuleNotFoundError():
                return _missing_package(name, f"No module named {error.name!r}", error.name)
            case gymnasium.error.Error() if isinstance(self.origin, str):
                return _unknown(self.origin, error)
            case ImportError():
                problem = f"cannot be made: {first_line(error).rstrip('.')}"
                return EnvironmentContractError("env", name, problem, "Choose another environment.")
            case TypeError() if self.kwargs:
                problem = f"do not fit {name}: {first_line(error)}"
                return EnvironmentContractError(
                    "env_kwargs", repr(self.kwargs), problem, "Check the environment's arguments."
                )
        fix = "Mend what makes it; `inchworm --debug` shows where."
        return EnvironmentContractError("env", name, f"cannot be made: {what}", fix)


def name_of(origin: Any) -> str:
    """What an environment is called: its id, or the name of the function or class that makes it."""
    if isinstance(origin, str):
        return origin
    return (
        getattr(origin, "__qualname__", type(origin).__qualname__)
        .replace("<locals>.", "")
        .replace("<lambda>", "lambda")
    )


def _unknown(env: str, error: BaseException) -> EnvironmentContractError:
    """An id or a name in a module that is not there."""
    module, colon, attribute = env.partition(":")
    if colon:
        problem = f"is not there: {module} has no {attribute or 'name after the colon'}"
        problem += did_you_mean(attribute, vars(sys.modules[module]) if module in sys.modules else ())
    else:
        near = did_you_mean(env, list(gymnasium.registry)) or f" ({first_line(error)})"
        problem = "is no environment that gymnasium knows" + near
    return EnvironmentContractError("env", env, problem, "Give a registered id, or module:factory for one of your own.")


def _is_own(missing: str | None, env: str) -> bool:
    """Whether a module that is missing is the one before the colon, or a package that it should be in."""
    module, colon, _ = env.partition(":")
    return bool(colon) and missing is not None and f"{module}.".startswith(f"{missing}.")


def _missing_module(env: str, missing: str) -> EnvironmentContractError:
    here = [path.stem for path in Path.cwd().glob("*.py")]
    return EnvironmentContractError(
        "env",
        env,
        f"is not there: no module {missing} is where Python looks, in the current folder, in PYTHONPATH or among what "
        "is installed" + did_you_mean(missing, here),
        f"Run from the folder of {missing}.py, or put that folder into PYTHONPATH; a package must be installed.",
    )


def _missing_package(env: str, message: str, module: str | None = None) -> MissingDependencyError:
    extra = EXTRAS.get(module or "") or next((name for key, name in EXTRAS.items() if key in message), None)
    install = f'pip install "inchworm[{extra}]"' if extra else "Install the package that the message names"
    return MissingDependencyError(
        "env", env, f"needs a package that is not installed: {message.rstrip('.')}", f"{install}."
    )


def _loads_a_renderer(error: BaseException) -> bool:
    """Whether an error comes from MuJoCo's choice of a renderer, which is made when it is imported."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    modules = (str(frame.f_globals.get("__name__")) for frame in frames)
    return any(module.startswith("mujoco.") and module.endswith(".gl_context") for module in modules)
