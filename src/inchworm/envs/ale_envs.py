"""Atari games in the vector environment of the Arcade Learning Environment, stepped inside compiled rollouts.

Observations are those of Mnih et al. 2015: every fourth frame, the maximum of the last two, grey, 84 x 84, four of them
stacked, bytes. An episode starts with up to 30 steps of doing nothing.
"""

import contextlib
import re
from typing import Any, ClassVar, NamedTuple

import gymnasium
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from inchworm.checks import did_you_mean
from inchworm.envs.gymnasium import spec_of
from inchworm.envs.pool import environment_seed, first_line
from inchworm.envs.traced import Transition
from inchworm.errors import EnvironmentContractError, MissingDependencyError
from inchworm.spaces import EnvSpec
from inchworm.types import ArrayTree

MAX_SEED = 2**31
"""Seeds are 32-bit integers with a sign."""
ALE_MAX_STEPS = 108_000 // 4
"""Frames of a game at most, and four of them are a step."""
STICKY = {"ALE/{}-v5": 0.25, "{}NoFrameskip-v4": 0.0}
"""How an id ends tells how likely the last action is repeated: Machado et al. 2018, or never (the paper)."""


def is_game(env: str) -> bool:
    """Whether an id is of this kind."""
    return _parse(env) is not None


def make_ale(env: str, kwargs: dict[str, Any], num_envs: int, threads: int) -> Any:
    """ALE's own object for N environments, with this library's defaults.

    Raises:
        MissingDependencyError: a package is not installed.
        EnvironmentContractError: there is no such game, or the arguments are refused.
    """
    try:
        import chex  # noqa: F401  (its XLA interface needs it)
        from ale_py import registration, roms
        from ale_py.vector_env import AtariVectorEnv
    except ImportError as error:
        raise MissingDependencyError(
            "backend", "ale", f"needs a package that is not installed ({error})", 'pip install "inchworm[atari]".'
        ) from error
    found = _parse(env)
    games = {registration.rom_id_to_name(rom): rom for rom in roms.get_all_rom_ids()}
    if found is None or found[0] not in games:
        near = did_you_mean(found[0] if found else env, games)
        raise EnvironmentContractError(
            "env", env, "is no game that ALE knows" + near, "Give e.g. ALE/Pong-v5 or PongNoFrameskip-v4."
        )
    game, sticky = found
    settings = {"repeat_action_probability": sticky, "reward_clipping": False} | kwargs
    try:
        return AtariVectorEnv(games[game], num_envs, num_threads=threads, **settings)
    except Exception as error:
        raise EnvironmentContractError(
            "env", env, f"cannot be made by ALE: {first_line(error)}", "Check the environment's arguments."
        ) from error


def _parse(env: str) -> tuple[str, float] | None:
    """The game's name in an id, and the probability that an action is repeated."""
    for form, sticky in STICKY.items():
        if found := re.fullmatch(form.format("([A-Za-z0-9]+)"), env):
            return found[1], sticky
    return None


class AleState(NamedTuple):
    """What the games are to compiled code."""

    handle: Array
    """Passed from step to step, so that they stay in order."""
    over: Bool[Array, " N"]
    """Whose game is over."""
    frame: Int[Array, " N"]
    """Of the running game; where it falls, a step has only started the game anew."""


class AleEnvs:
    """N games as `TracedEnvs`.

    A lost life is a termination for what is learned, but the game goes on, and its return counts the whole of it. As in
    the paper, but for one thing: after a lost life nobody presses FIRE for the policy.
    """

    def __init__(self, env: str, kwargs: dict[str, Any], num_envs: int, seed: int, restart: int, threads: int) -> None:
        """Makes and starts them.

        Raises:
            MissingDependencyError: ALE is not installed.
            EnvironmentContractError: there is no such game, or the arguments are refused.
        """
        self._games = make_ale(env, {"life_loss_info": True} | kwargs, num_envs, threads)
        self.spec: EnvSpec = spec_of(self._games, "single_")
        seeds = [environment_seed(seed, index, restart) % MAX_SEED for index in range(num_envs)]
        obs, info = self._games.reset(seed=np.array(seeds))
        handle, _, self._step = self._games.xla()
        state = AleState(handle, jnp.zeros(num_envs, bool), jnp.asarray(info["episode_frame_number"], jnp.int32))
        self.start: tuple[AleState, ArrayTree] = state, jnp.asarray(obs)

    @staticmethod
    def scope() -> contextlib.AbstractContextManager[Any]:
        """Nothing special."""
        return contextlib.nullcontext()

    def chance(self, state: AleState, horizon: int) -> tuple[None, AleState]:
        """Nothing: they draw for themselves."""
        return None, state

    def step(self, state: AleState, action: ArrayTree, chance: None) -> tuple[AleState, Transition]:
        handle, (obs, reward, terminated, truncated, info) = self._step(state.handle, action)
        restarted = info["episode_frame_number"] < state.frame
        # Lives are left where one was lost, and none where the game is over. Should a game be over otherwise, as by a
        # time limit in the very step that loses a life, its restart tells.
        over = (((terminated & (info["lives"] == 0)) | truncated) & ~restarted) | (restarted & ~state.over)
        return AleState(handle, over, info["episode_frame_number"]), Transition(
            next_obs=obs,
            reward=reward.astype(jnp.float32),
            terminated=terminated,
            truncated=truncated & ~terminated,
            valid=~restarted,
            obs=obs,
            first=restarted | terminated,
            over=over,
        )

    def mask(self, state: AleState) -> None:
        """None: games have no masks."""

    def close(self) -> None:
        self._games.close()


class AleView(gymnasium.Env):
    """A single game as a Gymnasium environment, whose episodes are whole games."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, env: str, kwargs: dict[str, Any]) -> None:
        self._games = make_ale(env, kwargs | {"life_loss_info": False, "episodic_life": False}, 1, 1)
        self.observation_space = self._games.single_observation_space
        self.action_space = self._games.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        obs, _ = self._games.reset(seed=None if seed is None else np.array([seed % MAX_SEED]))
        return np.array(obs[0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = self._games.step(np.array([action], np.int32))
        return np.array(obs[0]), float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def close(self) -> None:
        self._games.close()


def drawing_view(env: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    """The same game by Gymnasium's wrappers, which draws itself, as ALE's vector environment does not."""
    import ale_py

    found = _parse(env)
    assert found is not None
    gymnasium.register_envs(ale_py)
    settings: dict[str, Any] = {"repeat_action_probability": found[1]} | {
        name: kwargs[name] for name in ("repeat_action_probability", "full_action_space") if name in kwargs
    }
    game = gymnasium.make(f"ALE/{found[0]}-v5", frameskip=1, render_mode="rgb_array", **settings)
    preprocessed = gymnasium.wrappers.AtariPreprocessing(game)
    return gymnasium.wrappers.FrameStackObservation(preprocessed, 4, padding_type="zero")
