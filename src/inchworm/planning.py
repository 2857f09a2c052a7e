"""What a run is to be, by what the user gave."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from inchworm import spaces
from inchworm.algorithms.settings import Settings, minibatch_sizes
from inchworm.build import OwnParts
from inchworm.checks import check_choice, check_hashable, check_integer
from inchworm.config import ALGORITHMS, MAX_PROCESSORS, PRESETS, RunConfig, preset_for
from inchworm.envs.source import EnvSource, env_reference, env_source
from inchworm.errors import ConfigError
from inchworm.loop import check_precision
from inchworm.models.advice import advise
from inchworm.models.observations import is_image, num_features
from inchworm.spaces import EnvSpec
from inchworm.warning import warn
from inchworm.workers import check_outside, cores


def plan(
    env: Any,
    algorithm: Settings | str | None,
    own: OwnParts,
    *,
    preset: str | None,
    env_kwargs: dict[str, Any] | None,
    backend: str | None,
    settings: dict[str, Any],
    threads: int,
    total_steps: int | None,
    devices: int = 1,
    runs: int = 1,
    **of_run: Any,
) -> tuple[RunConfig, EnvSource]:
    """What a run is to be, and where its environments come from, by what the user gave.

    What the user asked for in vain is refused or warned of, see `ModelSettings.unread`.

    Raises:
        InchwormError: it cannot be.
    """
    threads = check_integer("threads", threads, 1, MAX_PROCESSORS)
    devices = check_integer("devices", devices, 1, MAX_PROCESSORS)
    _warn_of_other_threads(threads, devices)
    configure_jax(threads, devices, runs)
    float64 = jax.config.read("jax_enable_x64")
    source = env_source(env, env_kwargs, backend)
    check_precision(float64)
    start_jax()
    check_hashable("env", source.jax_env)
    name = preset_name(source) if preset is None else check_choice("preset", preset, PRESETS)
    chosen = PRESETS[name]
    named = None if isinstance(algorithm, Settings) else settings.keys()
    if isinstance(algorithm, Settings) and (settings or preset is not None):
        raise ConfigError(
            "algorithm",
            repr(algorithm),
            "is given together with a preset or single settings",
            "Give either settings inside it, or settings and a preset without it.",
        )
    if isinstance(algorithm, type) and issubclass(algorithm, Settings):
        name = algorithm.__name__
        raise ConfigError("algorithm", name, "is a class, where its settings are needed", f"Write iw.{name}().")
    if not isinstance(algorithm, Settings):
        algorithm = check_choice("algorithm", "ppo" if algorithm is None else algorithm, ALGORITHMS)
        if preset is not None and chosen.algorithms and algorithm not in chosen.algorithms:
            text = f"The preset {preset} has no settings for {algorithm}, which starts from its own defaults."
            warn(text)
        defaults = chosen.settings(algorithm)
        if source.num_envs is not None:
            settings = {"num_envs": source.num_envs} | settings
        algorithm = with_settings(defaults, settings)
    _check_effect(algorithm, named, source.spec, own)
    _check_memory(algorithm, source.spec, own)
    for finding in advise(source.spec, algorithm, own.network is not None):
        warn(str(finding))
    if of_run.get("env_processes", 1) != 1:
        _check_divisible(source, of_run["env_processes"])
    config = RunConfig(
        env=source.name,
        env_kwargs=source.kwargs,
        env_by_id=source.by_id,
        backend=source.backend,
        own_parts=own.names(),
        preset=None if named is None else name,
        algorithm=algorithm,
        total_steps=chosen.total_steps if total_steps is None else total_steps,
        threads=threads,
        devices=devices,
        **of_run,
    )
    return config, source


def _check_memory(settings: Settings, spec: EnvSpec, own: OwnParts) -> None:
    """Refuses what cannot fit into this machine's memory, by the least that it would take.

    That is a rollout, with the noise that its actions are drawn from, on the host and on the device; what the networks
    read of it, where a choice becomes a number for each; and of both networks' outer layers the parameters, their
    gradient and its two moments.

    Raises:
        ConfigError: it is more than there is; names what takes the most.
    """
    steps = settings.steps_per_iteration
    observed = [
        (math.prod(leaf.shape) if isinstance(leaf, spaces.Box | spaces.MultiBinary) else 1)
        * spaces.storage_dtype(leaf).itemsize
        for leaf in spaces.leaves(spec.observation_space)
    ]
    columns = sum(
        leaf.size if isinstance(leaf, spaces.Box) else spaces.num_mask_columns(leaf)
        for leaf in spaces.leaves(spec.action_space)
    )
    read = [leaf for leaf in spaces.leaves(spec.observation_space) if not is_image(leaf)]
    inputs = 0 if own.network is not None else sum(map(num_features, read))
    widths = settings.hidden_sizes or (columns,)
    takes = {
        "horizon": 2 * steps * 2 * sum(observed),
        "action_space": 2 * steps * 4 * columns + 4 * 4 * columns * widths[-1],
        "observation_space": 4 * steps * inputs + 4 * 4 * inputs * 2 * widths[0],
    }
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if sum(takes.values()) <= there:
        return
    field = max(takes, key=lambda name: takes[name])
    value, fix = {
        "horizon": (settings.horizon, "Lower horizon or num_envs."),
        "action_space": (f"{columns:,} choices or numbers", "Offer fewer, or several choices one beside the other."),
        "observation_space": (
            f"{inputs:,} numbers, where each choice is one",
            "Give what tells more with fewer numbers, or a network of your own.",
        ),
    }[field]
    needs = f"needs {sum(takes.values()) / 1e9:,.0f} GB at least"
    problem = f"{needs} to train with num_envs = {settings.num_envs}, and this machine has {there / 1e9:,.0f}"
    raise ConfigError(field, value, problem, fix)


def with_settings(preset: Settings, named: dict[str, Any]) -> Settings:
    """A preset's settings with those that the user named in their place.

    A minibatch size of the preset that does not fit what was named, as the horizon or a memory, gives way to the
    nearest that does, and a warning says so.
    """
    size = getattr(preset, "minibatch_size", None)
    if size is None or "minibatch_size" in named:
        return dataclasses.replace(preset, **named)
    num_envs, horizon = (
        check_integer(name, named.get(name, getattr(preset, name)), 1) for name in ("num_envs", "horizon")
    )
    recurrent = named.get("recurrent", preset.recurrent) != "none"
    fitting = minibatch_sizes(num_envs * horizon, horizon if recurrent else 1)
    if not fitting or size in fitting:
        return dataclasses.replace(preset, **named)
    nearest = min(fitting, key=lambda other: abs(other - size))
    whole = " in whole trajectories" if recurrent else ""
    warn(
        f"minibatch_size is {nearest} in place of the preset's {size}, so that minibatches cover num_envs * horizon = "
        f"{num_envs * horizon} steps{whole}."
    )
    return dataclasses.replace(preset, **named, minibatch_size=nearest)


def _check_effect(algorithm: Settings, named: Collection[str] | None, spec: EnvSpec, own: OwnParts) -> None:
    """Refuses settings that the user named in vain; where settings were given whole, `named` is None, it only warns.

    What the spaces or code of the user's own leave unread is only warned of too: elsewhere the same may be read.

    Raises:
        ConfigError: the settings leave one that was named unread.
    """
    defaults = type(algorithm)()
    for unread, refused in ((algorithm.unread(), named is not None), (_unread_here(spec, own), False)):
        for name, needs in unread.items():
            value = getattr(algorithm, name, None)
            if value == getattr(defaults, name, None) or (named is not None and name not in named):
                continue
            problem = f"has no effect without {needs}"
            if refused:
                raise ConfigError(name, str(value), problem, f"Leave it out, or take {needs}.")
            warn(f"{name} = {value} {problem}.")


def _check_divisible(source: EnvSource, env_processes: Any) -> None:
    """Raises `ConfigError` where environments cannot be stepped by several processes."""
    check_outside("env_processes")
    if source.origin is None:
        raise ConfigError(
            "env_processes",
            env_processes,
            f"divides Gymnasium's environments, and those of {source.name} are stepped together",
            "Leave it out.",
        )
    env_reference(source.origin)


def _unread_here(spec: EnvSpec, own: OwnParts) -> dict[str, str]:
    """Settings that nothing reads in an environment of these spaces, with these parts, and what each would need."""
    unread = {}
    if own.network is not None:
        unread["image_network"] = "the library's own networks for images, which network replaces"
    elif not any(map(is_image, spaces.leaves(spec.observation_space))):
        unread["image_network"] = "an image in the observation"
    if own.optimizer is not None:
        unread |= dict.fromkeys(("adam_epsilon", "max_grad_norm"), "the library's own Adam, which optimizer replaces")
    if not any(isinstance(leaf, spaces.Box) for leaf in spaces.leaves(spec.action_space)):
        unread |= dict.fromkeys(("log_std", "action_distribution"), "a Box among the actions")
    return unread


def _warn_of_other_threads(threads: int, devices: int) -> None:
    """Warns where XLA has been told another number of threads than is asked for."""
    found = os.environ.get("NPROC")
    if threads > 1 and found not in (None, str(threads), str(max(threads, 2 * devices))):
        text = f"threads = {threads} has no effect: NPROC = {found} is in the environment, and is what XLA goes by."
        warn(text)


def configure_jax(threads: int = 1, devices: int = 1, runs: int = 1) -> None:
    """Settings of JAX that small networks on a CPU need; they act only before its first computation.

    Dispatch in the calling thread, because handing each small call to another costs 30 to 70 us; a fixed number of
    threads, because XLA's results depend on it; and a cache of compiled programs. A CPU gets as many devices as a run
    is divided between, or one a core for several runs side by side. Products of float32 numbers keep all their bits
    on accelerators too, whose default is fewer: acting and updating must agree about the policy.
    """
    if not os.environ.get("NPROC", "").isdecimal():
        os.environ["NPROC"] = str(threads)
    if devices > 1:
        # Simulated devices wait for each other in the threads of one pool, and for ever if it has too few.
        os.environ["NPROC"] = str(max(int(os.environ["NPROC"]), 2 * devices))
    cpu_devices = max(devices, min(len(cores()), runs))
    if cpu_devices > 1:
        with contextlib.suppress(RuntimeError):  # too late: one device has to do
            jax.config.update("jax_num_cpu_devices", cpu_devices)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_default_matmul_precision", "highest")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        with contextlib.suppress(RuntimeError):  # nobody's home is known: nothing is kept
            cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            jax.config.update("jax_compilation_cache_dir", str(cache_home / "inchworm" / f"jax-{jax.__version__}"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def start_jax() -> None:
    """Starts JAX, which is done after environments are made: some start processes by forks, which JAX's threads forbid.

    Raises:
        ConfigError: it cannot be started on the platform that the user has named.
    """
    try:
        jax.devices()
    except RuntimeError as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        problem = f"names no platform that JAX can start here: {str(error).splitlines()[0]}"
        raise ConfigError("JAX_PLATFORMS", platforms, problem, "Unset it, or set it to cpu.") from error


def preset_name(source: EnvSource) -> str:
    """The preset an environment gets when none is named."""
    env = source.name if source.by_id else ""
    return preset_for(env, source.entry_point, source.spec.action_space, source.jax_env is not None)
