"""What must be set before JAX and the package are loaded, and the few fixtures that files share."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

# XLA sizes its thread pool by NPROC, and results may depend on it.
os.environ["NPROC"] = "1"

import jax
import numpy as np
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from quick_compilation import cache_folder, known_flags, starts_with

jax.config.update("jax_cpu_enable_async_dispatch", False)

# Most of a test run is XLA compiling small programs. They are kept, by the hash of what was compiled.
if CACHE := cache_folder():
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# A program compiled without optimisation takes a fraction of the time, which no test is long enough to win back. The
# flags are read when the backend starts; runs in processes of their own are compiled as users' are.
GIVEN = os.environ.get("XLA_FLAGS")
if GIVEN and not starts_with(GIVEN):
    pytest.exit(f"XLA_FLAGS = {GIVEN}: XLA does not start with it. Unset it, or name flags that this XLA knows.", 2)
os.environ["XLA_FLAGS"] = f"{GIVEN or ''} {known_flags(CACHE)}"
jax.devices()
if GIVEN is None:
    del os.environ["XLA_FLAGS"]
else:
    os.environ["XLA_FLAGS"] = GIVEN

# The modules that name shapes; instrumenting the others would only slow their loops down.
PACKAGE = Path(find_spec("inchworm").origin).parent
SHAPED = [path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py") if "jaxtyping" in path.read_text()]
install_import_hook([".".join(path.with_suffix("").parts) for path in SHAPED], "shape_checks.check_shapes")

pytest_plugins = ["fault_table"]

settings.register_profile("inchworm", deadline=None, derandomize=True, database=None)
settings.load_profile("inchworm")


class RecordedUpdate(NamedTuple):
    """One update and what its loss was given."""

    config: Any
    before: Any
    rollout: Any
    after: Any
    metrics: dict[str, Any]
    minibatches: list[Any]

    def epoch(self, index: int) -> Any:
        """The minibatches of one epoch, put together."""
        per_epoch = len(self.minibatches) // self.config.num_epochs
        parts = self.minibatches[index * per_epoch : (index + 1) * per_epoch]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@pytest.fixture(scope="session")
def made_up():
    """A function that fills what an `init` would return without compiling it.

    Parameters become random numbers of deviation 0.4, so that no state is like another; counters, moments and
    statistics become zeros, as in a fresh state, what adapts to the KL becomes one, and an average network the model.
    """

    def made_up(init: Callable[[jax.Array], Any], seed: int = 0) -> Any:
        generator = np.random.default_rng(seed)

        def fill(leaf):
            return np.float32(0.4 * generator.normal(size=leaf.shape))

        def zeros(leaf):
            is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            return jax.random.key(seed) if is_key else np.zeros(leaf.shape, leaf.dtype)

        shapes = jax.eval_shape(init, jax.random.key(0))
        if not hasattr(shapes, "opt_state"):
            return jax.tree.map(fill, shapes)
        model = jax.tree.map(fill, shapes.model)
        adaptive = {name: model if name == "average" else np.float32(1.0) for name in shapes.adaptive}
        return jax.tree.map(zeros, shapes)._replace(model=model, adaptive=adaptive)

    return made_up


@pytest.fixture(scope="session")
def act_out():
    """A function that makes a rollout of random observations, rewards and ends, acted by a state's own policy."""
    from inchworm import spaces
    from inchworm.models import observations
    from inchworm.types import Rollout

    freeze = jax.jit(observations.freeze)

    def act_out(state, shape: tuple[int, int], seed: int, invalid: float = 0.0) -> Rollout:
        generator = np.random.default_rng(seed)
        space, action_space = state.model.observation_space, state.model.action_space
        obs, next_obs = np.float32(generator.normal(0.3, 2.0, size=(2, *shape, space.size)))
        model, normalizers = observations.to_numpy((state.model, freeze(state.obs_stats)))
        distribution, _ = model.act(normalizers, obs)
        if isinstance(action_space, spaces.Discrete):
            noise = generator.gumbel(size=(*shape, action_space.n))
        else:
            noise = generator.normal(size=(*shape, action_space.size))
        action = distribution.sample_from(np.float32(noise))
        terminated = generator.random(shape) < 0.15
        return Rollout(
            obs=obs,
            first=np.zeros(shape, bool),
            action=action.astype(np.int32) if action.dtype.kind == "i" else action,
            mask=None,
            log_prob=distribution.log_prob(action),
            reward=np.float32(generator.normal(1.0, 2.0, size=shape)),
            terminated=terminated,
            truncated=~terminated & (generator.random(shape) < 0.15),
            next_obs=next_obs,
            carry=None,
            valid=generator.random(shape) >= invalid,
        )

    return act_out


@pytest.fixture(scope="session")
def recording():
    """A function that makes of a PPO a compiled update which also returns every minibatch of its loss, in order."""
    from unittest import mock

    from inchworm.algorithms import ppo

    loss = ppo._loss

    def recording(algorithm):
        update, seen = jax.jit(algorithm.update), []

        def recording_loss(model, normalizers, minibatch, config, now):
            jax.debug.callback(lambda batch: seen.append(jax.tree.map(np.array, batch)), minibatch, ordered=True)
            return loss(model, normalizers, minibatch, config, now)

        def recorded(state, rollout):
            seen.clear()
            with mock.patch.object(ppo, "_loss", recording_loss):
                after, metrics = update(state, rollout)
            jax.effects_barrier()
            return after, metrics, seen.copy()

        return recorded

    return recording


@pytest.fixture(scope="session")
def recorded_updates(act_out, made_up, recording):
    """Two iterations of PPO in a row, each with every minibatch that its loss was given, in order.

    K = 3 epochs of 4 minibatches of 6 out of T N = 24 rows.
    """
    from inchworm import spaces
    from inchworm.algorithms import ppo

    config = ppo.PPO(
        num_envs=3,
        horizon=8,
        num_epochs=3,
        minibatch_size=6,
        hidden_sizes=(8,),
        gamma=0.9,
        learning_rate=0.1,
        # Large, so that a step is a smooth function of its gradient and can be computed again by hand.
        adam_epsilon=0.1,
        vf_coef=0.5,
        ent_coef=0.02,
        normalize_observation=False,
    )
    spec = spaces.EnvSpec(spaces.Box((3,), "float32", -1.0, 1.0), spaces.Discrete(4))
    algorithm = ppo.make(config, spec, 1000)
    update = recording(algorithm)
    state = made_up(algorithm.init)
    updates = []
    for seed in range(2):
        rollout = act_out(state, (8, 3), seed)
        after, metrics, minibatches = update(state, rollout)
        after = after._replace(iteration=after.iteration + 1)
        updates.append(RecordedUpdate(config, state, rollout, after, metrics, minibatches))
        state = after
    return updates
