"""What a word may have meant that is not known: by its spelling, and by what other libraries call things."""

from collections.abc import Iterable
from difflib import get_close_matches

OFF_POLICY = frozenset(
    ["c51", "cql", "crossq", "ddpg", "ddqn", "dqn", "droq", "iql", "qrdqn", "rainbow", "redq", "sac", "td3", "tqc"]
)
"""Well-known algorithms that learn from a replay buffer."""

THEIRS = {
    "learning_rate": "lr step_size stepsize optim_stepsize anneal_lr lr_schedule actor_lr policy_lr pi_lr",
    "value_learning_rate": "critic_lr value_lr vf_lr",
    "num_envs": "n_envs n_env nenvs num_env num_environments num_actors env_num training_num",
    "horizon": "n_steps nsteps num_steps rollout_length rollout_steps unroll_length num_steps_per_env rollouts",
    "minibatch_size": "batch_size mini_batch_size num_minibatches num_mini_batches mini_batches n_minibatch",
    "num_epochs": (
        "n_epochs epochs update_epochs ppo_epoch ppo_epochs num_sgd_iter learning_epochs num_learning_epochs "
        "num_updates_per_batch train_iters update_per_step repeat_per_collect"
    ),
    "total_steps": "total_timesteps timesteps num_timesteps total_env_steps max_steps n_timesteps steps budget",
    "gamma": "discount discount_factor discounting",
    "gae_lambda": "lam lambda lambda_ gae_lam gae",
    "clip_range": "clip_coef clip_ratio clip_eps clip_param clip cliprange epsilon eps_clip clipping_epsilon",
    "clip_range_value": "clip_range_vf clip_vloss value_clip clip_value clip_predicted_values",
    "ent_coef": "entropy_coef entropy_coeff ent_coeff entropy_cost entropy_loss_scale entropy_beta entropy_weight",
    "vf_coef": "value_coef value_coeff vf_coeff vf_loss_coeff value_loss_coef value_loss_scale critic_coef",
    "max_grad_norm": "grad_norm grad_norm_clip gradient_clip grad_clip clip_grad_norm",
    "adam_epsilon": "adam_eps",
    "target_kl max_kl": "desired_kl kl_target kl_threshold max_kl_divergence d_targ delta",
    "kl_coef": "kl_coeff kl_beta",
    "max_kl": "target_kl",
    "cg_iters": "cg_max_steps cg_iterations",
    "fisher_fraction": "sub_sampling_factor fvp_subsample",
    "shrink": "line_search_shrinking_factor backtrack_coeff backtrack_ratio",
    "max_backtracks": "line_search_max_iter backtrack_iters",
    "num_value_epochs": "n_critic_updates vf_iters train_v_iters optim_critic_iters",
    "normalize_advantage": "norm_adv advantage_normalization adv_norm normalize_advantages",
    "normalize_observation": "norm_obs normalize_obs obs_norm normalize_observations observation_normalization",
    "normalize_return": "norm_reward normalize_reward reward_normalization reward_scaling rew_norm norm_return",
    "clip_reward": "reward_clip clip_rewards",
    "hidden_sizes activation": "net_arch policy_kwargs hidden_size hidden_dim hidden_layers hidden_layer_sizes hidden",
    "hidden_sizes": "policy_hidden_layer_sizes",
    "activation": "activation_fn",
    "recurrent": "rnn lstm gru use_rnn use_lstm memory",
    "recurrent_size": "lstm_hidden_size rnn_hidden_size lstm_size",
    "log_std": "log_std_init std init_log_std use_sde",
    "env": "env_id env_name task",
    "env_processes": "n_jobs num_workers num_cpu n_cpu num_processes workers",
    "backend": "vec_env vec_env_cls env_type",
    "algorithm": "algo alg policy",
    "progress": "verbose progress_bar",
    "out": "log_dir logdir save_dir save_path output output_dir tensorboard_log run_dir",
    "name": "run_name exp_name experiment tb_log_name",
    "checkpoint_seconds": "save_freq checkpoint_freq checkpoint_interval",
    "video": "capture_video record_video render",
    "evaluation_episodes": "n_eval_episodes eval_episodes num_eval_episodes",
    "episodes": "n_eval_episodes eval_episodes num_episodes n_episodes",
    "devices": "num_gpus gpus n_devices num_devices",
    "on_iteration": "callback callbacks",
    "reinforce": "vpg pg",
    "": "learning_starts buffer_size replay_size tau train_freq polyak target_update_interval exploration_fraction",
}
"""Our settings, options and algorithms, each with what other libraries call it; last, what has no counterpart here."""

OURS: dict[str, list[str]] = {}
"""What each word of other libraries is called here."""
for _ours, _theirs in THEIRS.items():
    for _word in _theirs.split():
        OURS.setdefault(_word, []).extend(_ours.split())

OF_TRAINING = ("env", "total_steps", "backend", "env_processes", "out", "name", "devices", "progress", "on_iteration")
"""Arguments of a training that are no settings of its algorithm, and may be sought among them."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A parenthesis that names what the word may mean among the known ones, or nothing.

    What other libraries call so goes before what is spelt so; letter case, hyphens and underscores make no difference.
    """
    names = {_folded(name): name for name in known}
    folded = _folded(word)
    if folded in OFF_POLICY and {"ppo", "trpo"} <= names.keys():
        return " (it is an off-policy algorithm, and those here are on-policy)"
    ours = OURS.get(folded)
    near = [folded] if folded in names else [name for name in ours or () if name in names]
    if not near and ours != []:
        near = get_close_matches(folded, list(names), n=3, cutoff=0.75)
    return f" (did you mean {' or '.join(names[name] for name in near)}?)" if near else ""


def _folded(name: str) -> str:
    return name.lstrip("-").lower().replace("-", "_")
