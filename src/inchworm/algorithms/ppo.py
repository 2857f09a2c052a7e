"""Proximal Policy Optimization with the clipped surrogate, arXiv:1707.06347, Algorithm 1."""

from dataclasses import dataclass
from typing import Literal, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from inchworm.algorithms.opening import opening_pass
from inchworm.algorithms.state import Algorithm, TrainState, update_key, zero
from inchworm.checks import check_choice, check_flag, check_integer, check_number
from inchworm.errors import ConfigError
from inchworm.models import observations
from inchworm.models.actor_critic import ActorCritic
from inchworm.models.networks import ACTIVATIONS
from inchworm.models.observations import Normalizers
from inchworm.numerics import running_stats
from inchworm.rl.diagnostics import clip_fraction, standardize, weighted_mean
from inchworm.rl.schedules import Scalar, Schedule, check_scalar
from inchworm.rl.surrogates import clipped_squared_error, clipped_surrogate, squared_error
from inchworm.spaces import EnvSpec
from inchworm.types import Batch, Metrics, PRNGKey, Rollout


@dataclass(frozen=True, kw_only=True)
class PPO:
    """Settings of PPO-Clip.

    Defaults are Table 3 of the paper; what the paper does not say but the authors' code (openai/baselines ppo1)
    does is marked "authors' code", what came later (ppo2, 2018) is off and marked so.
    """

    num_envs: int = 1
    """Environments stepped side by side, N."""
    horizon: int = 2048
    """Steps of each environment in an iteration, T (Table 3)."""
    num_epochs: int = 10
    """Passes over the batch in an iteration, K (Table 3)."""
    minibatch_size: int = 64
    """Transitions in a gradient step, M (Table 3); must divide num_envs * horizon."""
    learning_rate: Scalar = "linear:3e-4:0"
    """Adam's step size: 3e-4 (Table 3), going to 0 over the budget (authors' code)."""
    adam_epsilon: float = 1e-5
    """Adam's epsilon (authors' code)."""
    clip_range: Scalar = 0.2
    """epsilon of the clipped surrogate, equation (7)."""
    gamma: Scalar = 0.99
    """Discount (Table 3)."""
    gae_lambda: Scalar = 0.95
    """lambda of the generalized advantage estimate (Table 3)."""
    vf_coef: Scalar = 1.0
    """c1 of equation (9), on the squared error without one half."""
    ent_coef: Scalar = 0.0
    """c2 of equation (9), on the analytic entropy; not used on MuJoCo in the paper."""
    normalize_advantage: Literal["none", "minibatch", "batch"] = "batch"
    """Where advantages get mean 0 and deviation 1: nowhere, in minibatches (ppo2), over the batch (authors' code)."""
    normalize_observation: bool = True
    """Scale float observations by running statistics and clip at 5 (authors' code)."""
    normalize_return: bool = False
    """Divide rewards by the running deviation of the discounted return (ppo2, not in the paper)."""
    max_grad_norm: float | None = None
    """Clip the gradient's global norm (ppo2, not in the paper)."""
    clip_range_value: float | None = None
    """Keep new values this near the old ones (ppo2, not in the paper)."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of the policy and of the value network."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Activation of the hidden layers."""

    def __post_init__(self) -> None:
        for name, minimum in {"num_envs": 1, "horizon": 1, "num_epochs": 1, "minibatch_size": 2}.items():
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum))
        _check_minibatch_size(self.minibatch_size, self.steps_per_iteration)
        check_number("adam_epsilon", self.adam_epsilon, above=0.0)
        scalars = {
            "learning_rate": {"above": 0.0, "minimum": 0.0},
            "clip_range": {"above": 0.0, "minimum": 0.0},
            "gamma": {"minimum": 0.0, "maximum": 1.0},
            "gae_lambda": {"minimum": 0.0, "maximum": 1.0},
            "vf_coef": {"minimum": 0.0},
            "ent_coef": {},
        }
        for name, limits in scalars.items():
            object.__setattr__(self, name, check_scalar(name, getattr(self, name), **limits))
        check_choice("normalize_advantage", self.normalize_advantage, ("none", "minibatch", "batch"))
        check_flag("normalize_observation", self.normalize_observation)
        check_flag("normalize_return", self.normalize_return)
        for name in ("max_grad_norm", "clip_range_value"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0.0)
        if not isinstance(self.hidden_sizes, list | tuple):
            raise ConfigError("hidden_sizes", self.hidden_sizes, "is not a list of widths", "Give e.g. (64, 64).")
        object.__setattr__(self, "hidden_sizes", tuple(check_integer("hidden_sizes", n, 1) for n in self.hidden_sizes))
        check_choice("activation", self.activation, ACTIVATIONS)

    @property
    def steps_per_iteration(self) -> int:
        """Transitions of one iteration, N T."""
        return self.num_envs * self.horizon

    @property
    def gradient_steps_per_iteration(self) -> int:
        """K N T / M."""
        return self.num_epochs * self.steps_per_iteration // self.minibatch_size


def _check_minibatch_size(minibatch_size: int, batch_size: int) -> None:
    if batch_size % minibatch_size:
        divisors = [size for size in range(2, batch_size + 1) if batch_size % size == 0]
        nearest = sorted(divisors, key=lambda size: abs(size - minibatch_size))[:3]
        raise ConfigError(
            "minibatch_size",
            minibatch_size,
            f"does not divide num_envs * horizon = {batch_size}, and no transition may be dropped",
            f"Use {' or '.join(str(size) for size in sorted(nearest))}." if nearest else "Raise num_envs or horizon.",
        )


def make(config: PPO, spec: EnvSpec, total_steps: int) -> Algorithm:
    """PPO for environments of one specification and a budget of `total_steps` environment steps.

    Raises:
        UnsupportedSpaceError: no policy handles one of the spaces.
    """
    # The direction only: the learning rate moves with the budget and multiplies it.
    clip_norm = [] if config.max_grad_norm is None else [optax.clip_by_global_norm(config.max_grad_norm)]
    direction = optax.chain(*clip_norm, optax.scale_by_adam(eps=config.adam_epsilon))

    def init(key: PRNGKey) -> TrainState:
        model_key, run_key = jax.random.split(key)
        model = ActorCritic.init(model_key, spec, config.hidden_sizes, config.activation)
        return TrainState(
            model=model,
            opt_state=direction.init(cast(optax.Params, model)),
            obs_stats=observations.empty_stats(spec.observation_space, config.normalize_observation),
            return_stats=running_stats.empty(()),
            discounted_return=jnp.zeros(config.num_envs),
            key=run_key,
            iteration=zero(),
            skipped=zero(),
            skipped_in_row=zero(),
        )

    def update(state: TrainState, rollout: Rollout) -> tuple[TrainState, Metrics]:
        env_steps = state.iteration * float(config.steps_per_iteration)
        now = _scheduled(config, env_steps, total_steps)
        normalizers = observations.freeze(state.obs_stats)
        batch, old, metrics = opening_pass(state.model, normalizers, rollout, now["gamma"], now["gae_lambda"])
        if config.normalize_advantage == "batch":
            batch = batch._replace(advantage=standardize(batch.advantage, batch.weight))

        def minibatch_step(carry, minibatch: Batch):
            model, opt_state = carry
            gradient, metrics = jax.grad(_loss, has_aux=True)(model, normalizers, minibatch, config, now)
            step, opt_state = direction.update(gradient, opt_state)
            model = jax.tree.map(lambda p, d: p - now["learning_rate"] * d, model, step)
            return (model, opt_state), metrics | {"loss/gradient_norm": optax.global_norm(gradient)}

        def epoch(carry, key: PRNGKey):
            order = jax.random.permutation(key, config.steps_per_iteration)
            minibatches = jax.tree.map(
                lambda leaf: leaf[order].reshape(-1, config.minibatch_size, *leaf.shape[1:]), batch
            )
            return jax.lax.scan(minibatch_step, carry, minibatches)

        keys = jax.random.split(update_key(state.key, state.iteration), config.num_epochs)
        (model, opt_state), steps = jax.lax.scan(epoch, (state.model, state.opt_state), keys)

        new = model.act(normalizers, rollout.obs, rollout.mask)
        weight = rollout.valid.astype(jnp.float32)
        metrics |= jax.tree.map(jnp.mean, steps)
        metrics |= {
            "policy/kl": weighted_mean(old.kl(new), weight),
            "policy/entropy": weighted_mean(new.entropy(), weight),
            "schedule/learning_rate": now["learning_rate"],
            "schedule/clip_range": now["clip_range"],
        }
        return state._replace(model=model, opt_state=opt_state), metrics

    return Algorithm(init, update)


def _scheduled(config: PPO, env_steps: Float[Array, ""], total_steps: int) -> dict[str, Float[Array, ""]]:
    """Every scalar setting at this point of the run."""
    scalars = {name: value for name, value in vars(config).items() if isinstance(value, Schedule)}
    return {name: schedule(env_steps, total_steps) for name, schedule in scalars.items()}


def _loss(
    model: ActorCritic,
    normalizers: Normalizers,
    minibatch: Batch,
    config: PPO,
    now: dict[str, Float[Array, ""]],
) -> tuple[Float[Array, ""], Metrics]:
    """Equation (9) with its sign turned: -(L^CLIP - c1 L^VF + c2 S), averaged over the valid rows."""
    weight = minibatch.weight
    advantage = minibatch.advantage
    if config.normalize_advantage == "minibatch":
        advantage = standardize(advantage, weight)
    distribution, value = model.evaluate(normalizers, minibatch.obs, minibatch.mask)
    log_ratio = distribution.log_prob(minibatch.action) - minibatch.log_prob

    policy_loss = -weighted_mean(clipped_surrogate(log_ratio, advantage, now["clip_range"]), weight)
    if config.clip_range_value is None:
        value_error = squared_error(value, minibatch.returns)
    else:
        value_error = clipped_squared_error(value, minibatch.value, minibatch.returns, config.clip_range_value)
    value_loss = weighted_mean(value_error, weight)
    entropy = weighted_mean(distribution.entropy(), weight)

    loss = policy_loss + now["vf_coef"] * value_loss - now["ent_coef"] * entropy
    return loss, {
        "loss/policy": policy_loss,
        "loss/value": value_loss,
        "policy/clip_fraction": clip_fraction(log_ratio, now["clip_range"], weight),
    }
