"""Atari games in the vector environment of the Arcade Learning Environment, stepped inside compiled rollouts.

Observations are those of Mnih et al. 2015: every fourth frame, the maximum of the last two, grey, 84 x 84, four of them
stacked, bytes. An episode starts with up to 30 steps of doing nothing.
"""

import contextlib
import inspect
import re
from typing import Any, NamedTuple

import gymnasium
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from inchworm.envs.foreign import check_known_id, check_kwargs, constructing, importing
from inchworm.envs.gymnasium import spec_of
from inchworm.envs.pool import environment_seed
from inchworm.envs.single_view import MAX_SEED, SingleView
from inchworm.envs.traced import Transition
from inchworm.errors import EnvironmentContractError
from inchworm.spaces import EnvSpec
from inchworm.types import ArrayTree

MAX_FRAMES, FRAMES_A_STEP = 108_000, 4
"""Frames of a game at most, and how many of them are a step, unless arguments say otherwise."""
RESERVED = ("game", "num_envs", "batch_size", "num_threads", "autoreset_mode", "episodic_life")
"""Arguments that a run's other settings decide, or that what is done about lost lives rests on."""
STICKY = {"ALE/{}-v5": 0.25, "{}NoFrameskip-v4": 0.0}
"""How an id ends tells how likely the last action is repeated: Machado et al. 2018, or never (the paper)."""


def is_game(env: str) -> bool:
    """Whether an id is of this kind."""
    return _parse(env) is not None


def make_ale(env: str, kwargs: dict[str, Any], num_envs: int, threads: int) -> Any:
    """ALE's own object for N environments, with this library's defaults.

    Raises:
        MissingDependencyError: a package is not installed.
        EnvironmentContractError: there is no such game.
        ConfigError: it does not take the arguments.
    """
    if not is_game(env):
        fix = "Give e.g. ALE/Pong-v5 or PongNoFrameskip-v4, or another backend."
        raise EnvironmentContractError("env", env, "is no id of an Atari game", fix)
    with importing("ale", "atari"):
        import chex  # noqa: F401  (its XLA interface needs it)
        from ale_py import registration, roms
        from ale_py.vector_env import AtariVectorEnv
    roms_of = {
        form.format(registration.rom_id_to_name(rom)): (rom, sticky)
        for rom in roms.get_all_rom_ids()
        for form, sticky in STICKY.items()
    }
    check_known_id(env, roms_of, "ALE", "e.g. ALE/Pong-v5 or PongNoFrameskip-v4")
    rom, sticky = roms_of[env]
    arguments = inspect.signature(AtariVectorEnv.__init__).parameters.values()
    defaults = {argument.name: argument.default for argument in arguments if argument.name != "self"}
    settings = {"repeat_action_probability": sticky, "reward_clipping": False} | check_kwargs(
        kwargs, defaults, RESERVED
    )
    given = {name: value for name, value in kwargs.items() if name != "life_loss_info"}  # that is the adapter's own
    with constructing(env, given):
        return AtariVectorEnv(rom, num_envs, num_threads=threads, **settings)


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
            InchwormError: they cannot be made, see `make_ale`.
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


def ale_view(env: str, kwargs: dict[str, Any]) -> SingleView:
    """A single game as a Gymnasium environment, whose episodes are whole games."""

    def restart(games: Any, seed: int) -> tuple[Any, Any]:
        return games, games.reset(seed=np.array([seed % MAX_SEED]))

    games = make_ale(env, kwargs | {"life_loss_info": False}, 1, 1)
    frames, skip = kwargs.get("max_num_frames_per_episode", MAX_FRAMES), kwargs.get("frameskip", FRAMES_A_STEP)
    return SingleView(games, spec_of(games, "single_"), restart, "ale_py", frames // skip)


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
