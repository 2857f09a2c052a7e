"""Checks of settings, made when a setting is made; each raises `ConfigError`."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from inchworm.errors import ConfigError

OFF_POLICY = {
    "c51",
    "cql",
    "crossq",
    "ddpg",
    "ddqn",
    "dqn",
    "droq",
    "iql",
    "qrdqn",
    "rainbow",
    "redq",
    "sac",
    "td3",
    "tqc",
}
"""Well-known algorithms that learn from a replay buffer."""

_ELSEWHERE = """
    learning_rate: lr, step_size, stepsize, optim_stepsize, anneal_lr, lr_schedule, actor_lr, policy_lr, pi_lr
    value_learning_rate: critic_lr, value_lr, vf_lr
    num_envs: n_envs, n_env, nenvs, num_env, num_environments, num_actors, env_num, training_num
    horizon: n_steps, nsteps, num_steps, rollout_length, rollout_steps, unroll_length, num_steps_per_env, rollouts
    minibatch_size: batch_size, mini_batch_size, num_minibatches, num_mini_batches, mini_batches, n_minibatch
    num_epochs: n_epochs, epochs, update_epochs, ppo_epoch, ppo_epochs, num_sgd_iter, learning_epochs
    num_epochs: num_learning_epochs, num_updates_per_batch, train_iters, update_per_step, repeat_per_collect
    total_steps: total_timesteps, timesteps, num_timesteps, total_env_steps, max_steps, n_timesteps, steps, budget
    gamma: discount, discount_factor, discounting
    gae_lambda: lam, lambda, lambda_, gae_lam, gae
    clip_range: clip_coef, clip_ratio, clip_eps, clip_param, clip, cliprange, epsilon, eps_clip, clipping_epsilon
    clip_range_value: clip_range_vf, clip_vloss, value_clip, clip_value, clip_predicted_values
    ent_coef: entropy_coef, entropy_coeff, ent_coeff, entropy_cost, entropy_loss_scale, entropy_beta, entropy_weight
    vf_coef: value_coef, value_coeff, vf_coeff, vf_loss_coeff, value_loss_coef, value_loss_scale, critic_coef
    max_grad_norm: grad_norm, grad_norm_clip, gradient_clip, grad_clip, clip_grad_norm
    adam_epsilon: adam_eps
    target_kl max_kl: desired_kl, kl_target, kl_threshold, max_kl_divergence, d_targ, delta
    kl_coef: kl_coeff, kl_beta
    max_kl: target_kl
    cg_iters: cg_max_steps, cg_iterations
    fisher_fraction: sub_sampling_factor, fvp_subsample
    shrink: line_search_shrinking_factor, backtrack_coeff, backtrack_ratio
    max_backtracks: line_search_max_iter, backtrack_iters
    num_value_epochs: n_critic_updates, vf_iters, train_v_iters, optim_critic_iters
    normalize_advantage: norm_adv, advantage_normalization, adv_norm, normalize_advantages
    normalize_observation: norm_obs, normalize_obs, obs_norm, normalize_observations, observation_normalization
    normalize_return: norm_reward, normalize_reward, reward_normalization, reward_scaling, rew_norm, norm_return
    clip_reward: reward_clip, clip_rewards
    hidden_sizes activation: net_arch, policy_kwargs, hidden_size, hidden_dim, hidden_layers, hidden_layer_sizes, hidden
    hidden_sizes: policy_hidden_layer_sizes
    activation: activation_fn
    recurrent: rnn, lstm, gru, use_rnn, use_lstm, memory
    recurrent_size: lstm_hidden_size, rnn_hidden_size, lstm_size
    log_std: log_std_init, std, init_log_std, use_sde
    env: env_id, env_name, task
    env_processes: n_jobs, num_workers, num_cpu, n_cpu, num_processes, workers
    backend: vec_env, vec_env_cls, env_type
    algorithm: algo, alg, policy
    progress: verbose, progress_bar
    out: log_dir, logdir, save_dir, save_path, output, output_dir, tensorboard_log, run_dir
    name: run_name, exp_name, experiment, tb_log_name
    checkpoint_seconds: save_freq, checkpoint_freq, checkpoint_interval
    video: capture_video, record_video, render
    evaluation_episodes: n_eval_episodes, eval_episodes, num_eval_episodes
    episodes: n_eval_episodes, eval_episodes, num_episodes, n_episodes
    devices: num_gpus, gpus, n_devices, num_devices
    on_iteration: callback, callbacks
    reinforce: vpg, pg
    : learning_starts, buffer_size, replay_size, tau, train_freq, polyak, target_update_interval, exploration_fraction
"""

ELSEWHERE: dict[str, tuple[str, ...]] = {}
"""What other libraries call our settings, options and algorithms; nothing for what has no like here."""

OF_TRAINING = ("env", "total_steps", "backend", "env_processes", "out", "name", "devices", "progress", "on_iteration")
"""Arguments of a training that are no settings of its algorithm, and may be sought among them."""

for _line in _ELSEWHERE.strip().splitlines():
    _ours, _, _theirs = _line.partition(":")
    for _word in _theirs.replace(",", " ").split():
        ELSEWHERE[_word] = (*ELSEWHERE.get(_word, ()), *_ours.split())


def check_integer(field: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """The value as `int`, which may be written as 1e6, or `ConfigError` if it is not a whole number in the range."""
    span = f"of at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
    whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        raise ConfigError(field, repr(value), "is not a whole number", f"Give an integer {span}.")
    number = int(value)
    if number < minimum or (maximum is not None and number > maximum):
        raise ConfigError(field, value, "is out of range", f"Give an integer {span}.")
    return number


def read_integer(text: str) -> int:
    """The whole number that a text stands for, which may have an exponent, as 1e6; `ValueError` if it is none."""
    try:
        return int(text)
    except ValueError:
        number = Decimal(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?e\+?[0-9]{1,2}", text, re.IGNORECASE) else None
        if number is None or number != int(number):
            raise ValueError(f"{text} is no whole number") from None
        return int(number)


def check_number(
    field: str,
    value: Any,
    *,
    above: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> float:
    """The value as `float`, or `ConfigError` if it is not finite or not in the range."""
    limits = [
        f"above {above:g}" if above is not None else "",
        f"at least {minimum:g}" if minimum is not None else "",
        f"at most {maximum:g}" if maximum is not None else "",
    ]
    fix = "Give a finite number" + " ".join([""] + [limit for limit in limits if limit]) + "."
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(field, repr(value), "is not a number", fix)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(field, value, "is not finite", fix)
    too_low = (above is not None and number <= above) or (minimum is not None and number < minimum)
    if too_low or (maximum is not None and number > maximum):
        raise ConfigError(field, value, "is out of range", fix)
    return number


def check_flag(field: str, value: Any) -> bool:
    """The value, or `ConfigError` if it is not True or False."""
    if not isinstance(value, bool):
        raise ConfigError(field, repr(value), "is neither true nor false", "Give True or False.")
    return value


def check_choice(field: str, value: Any, choices: Iterable[str]) -> str:
    """The value, or `ConfigError` if it is none of the choices."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(
            field,
            value,
            "is not one of the choices" + did_you_mean(str(value), choices),
            "Choose one of " + ", ".join(choices) + ".",
        )
    return value


def check_known(settings: Mapping[str, Any], cls: type) -> None:
    """`ConfigError` for a setting that the dataclass does not have, with what may be meant."""
    known = [field.name for field in dataclasses.fields(cls)]
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(
                name,
                value,
                f"is not a setting of {cls.__name__}" + did_you_mean(name, [*known, *OF_TRAINING]),
                f"Its settings are {', '.join(known)}.",
            )


def check_path(field: str, value: Any) -> Path:
    """The value as `Path`, or `ConfigError` if it is neither text nor a path."""
    if not isinstance(value, str | Path):
        raise ConfigError(field, value, "is no path", "Give a text or a pathlib.Path.")
    return Path(value)


def check_output(field: str, path: Path, endings: tuple[str, ...]) -> None:
    """`ConfigError` unless a file of one of these kinds can be written there."""
    if path.suffix.lower() not in endings:
        raise ConfigError(field, str(path), "has no ending that can be written", f"Use {' or '.join(endings)}.")
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(field, str(path), "is a folder, or in none", "Name a file in a folder that is there.")


def check_hashable(field: str, value: Any) -> None:
    """`ConfigError` if the value, which compiled programs are kept by, cannot be hashed."""
    try:
        hash(value)
    except TypeError as error:
        raise ConfigError(
            field,
            type(value).__name__,
            "cannot be hashed, and compiled programs are kept by it",
            "Make it a function, or a dataclass(frozen=True).",
        ) from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A parenthesis that names what the word may mean among the known ones, or nothing.

    What other libraries call so goes before what is spelt so; letter case, hyphens and underscores make no difference.
    """
    names = {_folded(name): name for name in known}
    folded = _folded(word)
    if folded in OFF_POLICY and "ppo" in names:
        return " (it is an off-policy algorithm, and those here are on-policy)"
    theirs = ELSEWHERE.get(folded)
    near = [folded] if folded in names else [name for name in theirs or () if name in names]
    if not near and theirs != ():
        near = get_close_matches(folded, list(names), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(names[name] for name in near)}?)" if near else ""


def _folded(name: str) -> str:
    return name.lstrip("-").lower().replace("-", "_")
