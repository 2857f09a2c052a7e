"""Policy gradients that take one step per rollout: REINFORCE, the advantage actor-critic, and what they grew into."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from inchworm.algorithms.batch import unroll
from inchworm.algorithms.opening import Opening, opening_pass
from inchworm.algorithms.optimizer import (
    adapted_learning_rate,
    check_two_optimizers,
    descend,
    make_direction,
    with_adapted_rates,
)
from inchworm.algorithms.settings import Continuation, Now, Settings, check_numbers, check_scalars
from inchworm.algorithms.state import Algorithm, TrainState, initial_state
from inchworm.checks import check_flag
from inchworm.errors import ConfigError
from inchworm.models import observations
from inchworm.models.actor_critic import Model, make_model
from inchworm.models.network import CustomNetwork
from inchworm.models.observations import Normalizers
from inchworm.numerics.tree import broadcast_rows
from inchworm.rl.diagnostics import weighted_mean
from inchworm.rl.distributions import Distribution
from inchworm.rl.schedules import Scalar, Schedule
from inchworm.rl.surrogates import squared_error
from inchworm.spaces import EnvSpec
from inchworm.types import Batch, Metrics, PRNGKey, Rollout

AVERAGE_DECAY = 0.99
"""Of the average network that a trust region is measured from (arXiv:1611.01224, section 3.3)."""


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Settings):
    """Settings of algorithms that take one gradient step per rollout, equation (2) of arXiv:1707.06347."""

    learning_rate: Scalar = 7e-4
    """Adam's step size."""
    value_learning_rate: Scalar | None = None
    """Step size of an optimiser of the value function's own; None for one optimiser of both."""
    adam_epsilon: float = 1e-5
    """Adam's epsilon."""
    vf_coef: Scalar = 0.5
    """Weight of the value function's squared error."""
    ent_coef: Scalar = 0.0
    """Weight of the analytic entropy, as a bonus."""
    max_grad_norm: float | None = 0.5
    """Clip the gradient's global norm."""
    target_kl: Scalar | None = None
    """Move the learning rate so that an update's KL(old‖new) stays near this (footnote 3 of the paper)."""
    baseline: bool = True
    """False learns from returns alone: an episode that the horizon cuts is continued to its end under the same policy,
    on steps beyond the budget, and what would come after a time limit counts as 0."""
    trust_region: float | None = None
    """Bound on how fast a step may move away from an average of past policies (arXiv:1611.01224, equation 12)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scalars(
            self,
            learning_rate={"above": 0.0, "minimum": 0.0},
            value_learning_rate={"above": 0.0, "minimum": 0.0},
            target_kl={"above": 0.0, "minimum": 0.0},
            vf_coef={"minimum": 0.0},
            ent_coef={"minimum": 0.0},
        )
        check_numbers(self, adam_epsilon={"above": 0.0}, max_grad_norm={"above": 0.0}, trust_region={"above": 0.0})
        check_flag("baseline", self.baseline)
        if self.normalize_advantage == "minibatch":
            raise ConfigError(
                "normalize_advantage", "minibatch", "has no meaning, there are no minibatches", 'Take "batch".'
            )
        if self.trust_region is not None and isinstance(self.log_std, Schedule):
            raise ConfigError(
                "trust_region",
                self.trust_region,
                "is measured from an average policy, and a scheduled log_std has none",
                'Set log_std to "learned" or "state".',
            )
        if not self.baseline:
            wanted = {"gae_lambda": Schedule(1.0, 1.0), "max_entropy_alpha": Schedule(0.0, 0.0)}
            for name, value in wanted.items():
                if getattr(self, name) != value:
                    raise ConfigError(
                        name, str(getattr(self, name)), "has no meaning without a baseline", f"Set it to {value}."
                    )
            if cast(Schedule, self.gamma).start != cast(Schedule, self.gamma).end:
                raise ConfigError("gamma", str(self.gamma), "must be constant without a baseline", "Give one number.")
        check_two_optimizers(self.shared_trunk, self.value_learning_rate)

    @property
    def continuation(self) -> Continuation | None:
        return None if self.baseline else Continuation(cast(Schedule, self.gamma).start, self.clip_reward)

    def unread(self) -> dict[str, str]:
        unread = super().unread()
        if not self.baseline:
            unread |= dict.fromkeys(("value_target", "vf_coef", "value_learning_rate"), "baseline = True")
        return unread


@dataclass(frozen=True, kw_only=True)
class A2C(PolicyGradient):
    """Settings of the synchronous advantage actor-critic.

    Horizon, step size, coefficients and gradient norm are those of openai/baselines a2c, which has RMSProp for Adam.
    """

    num_envs: int = 16
    horizon: int = 5
    gae_lambda: Scalar = 1.0
    normalize_advantage: Literal["none", "minibatch", "batch"] = "none"
    ent_coef: Scalar = 0.01


@dataclass(frozen=True, kw_only=True)
class REINFORCE(PolicyGradient):
    """Settings of REINFORCE (Williams 1992) with a learned baseline: Monte-Carlo returns, which are bootstrapped only
    where a time limit or the horizon cuts an episode."""

    num_envs: int = 8
    horizon: int = 256
    gae_lambda: Scalar = 1.0
    learning_rate: Scalar = "linear:3e-3:0"


def make(
    config: PolicyGradient,
    spec: EnvSpec,
    total_steps: int,
    custom_network: CustomNetwork | None = None,
    custom_optimizer: optax.GradientTransformation | None = None,
) -> Algorithm:
    """A policy gradient for environments of one specification and a budget of `total_steps` environment steps.

    Raises:
        UnsupportedSpaceError: no policy handles one of the spaces.
    """
    two_optimizers = config.value_learning_rate is not None
    direction = make_direction(config.adam_epsilon, config.max_grad_norm, two_optimizers, custom_optimizer)

    def init(key: PRNGKey) -> TrainState:
        model_key, run_key = jax.random.split(key)
        model = make_model(model_key, spec, config, custom_network)
        adaptive: dict[str, Any] = {}
        if config.target_kl is not None:
            adaptive["learning_rate_scale"] = jnp.float32(1.0)
        if config.trust_region is not None:
            adaptive["average"] = model
        return initial_state(config, spec, run_key, model, direction.init(model), adaptive)  # type: ignore[arg-type]

    def update(state: TrainState, rollout: Rollout) -> tuple[TrainState, Metrics]:
        now = config.at(state.iteration * float(config.steps_per_iteration), total_steps)
        now = with_adapted_rates(now, state.adaptive)
        normalizers = observations.freeze(state.obs_stats)
        opening = opening_pass(state.model, normalizers, rollout, config, now)
        average = None
        if config.trust_region is not None:
            average = unroll(state.adaptive["average"], normalizers, rollout).distribution

        gradient, metrics = jax.grad(_loss, has_aux=True)(
            state.model, normalizers, rollout, opening, average, config, now
        )
        step, opt_state = direction.update(gradient, state.opt_state, state.model)  # type: ignore[arg-type]
        model = descend(state.model, step, now["learning_rate"], now.get("value_learning_rate"))

        new = unroll(model, normalizers, rollout).distribution
        kl = weighted_mean(opening.old.kl(new), opening.batch.weight)
        adaptive = dict(state.adaptive)
        if config.target_kl is not None:
            scale = adaptive["learning_rate_scale"]
            adaptive["learning_rate_scale"] = adapted_learning_rate(scale, kl, now["target_kl"])
        if config.trust_region is not None:
            adaptive["average"] = jax.tree.map(
                lambda old, p: AVERAGE_DECAY * old + (1.0 - AVERAGE_DECAY) * p, adaptive["average"], model
            )
        metrics |= opening.metrics | {
            "loss/gradient_norm": optax.tree.norm(gradient),
            "policy/kl": kl,
            "policy/entropy": weighted_mean(new.entropy(), opening.batch.weight),
            "schedule/learning_rate": now["learning_rate"],
        }
        return state._replace(model=model, opt_state=opt_state, adaptive=adaptive), metrics

    return Algorithm(init, update)


def _loss(
    model: Model,
    normalizers: Normalizers,
    rollout: Rollout,
    opening: Opening,
    average: Distribution | None,
    config: PolicyGradient,
    now: Now,
) -> tuple[Float[Array, ""], Metrics]:
    """Equation (2) with its sign turned, the value function's error and the entropy: -(L^PG - c1 L^VF + c2 S)."""
    batch = opening.batch
    new, value, _ = unroll(model, normalizers, rollout)

    if average is None:
        gain = new.log_prob(batch.action) * batch.advantage
    else:
        shape = batch.weight.shape
        gain = trust_region_gain(
            broadcast_rows(new, shape), broadcast_rows(average, shape), batch, config.trust_region or jnp.inf
        )
    policy_loss = -weighted_mean(gain, batch.weight)
    entropy = weighted_mean(new.entropy(), batch.weight)
    loss = policy_loss - now["ent_coef"] * entropy
    if not config.baseline:
        return loss, {"loss/policy": policy_loss}
    value_loss = weighted_mean(squared_error(value, batch.returns), batch.weight)
    return loss + now["vf_coef"] * value_loss, {"loss/policy": policy_loss, "loss/value": value_loss}


def trust_region_gain(new: Distribution, average: Distribution, batch: Batch, bound: float) -> Float[Array, "T N"]:
    """For each row a function whose gradient in the distribution's statistics is that of log pi A, held back where it
    would move the policy away from the average policy too fast.

    Equation (12) of arXiv:1611.01224 (ACER) without replay: with g the gradient of log pi(a|s) A and k that of
    KL(average‖pi) in the statistics (logits, means, ...), g becomes g - max(0, (k.g - bound) / |k|^2) k.
    """
    g = jax.grad(lambda d: jnp.sum(d.log_prob(batch.action) * batch.advantage))(new)
    k = jax.grad(lambda d: jnp.sum(average.kl(d)))(new)
    k_dot_g, k_dot_k = _row_inner(k, g), _row_inner(k, k)
    excess = jnp.maximum(0.0, k_dot_g - bound) / jnp.where(k_dot_k > 0, k_dot_k, 1.0)
    held_back = jax.tree.map(lambda g, k: g - excess[..., None] * k, g, k)
    return _row_inner(jax.lax.stop_gradient(held_back), new)


def _row_inner(a: Distribution, b: Distribution) -> Float[Array, "T N"]:
    """Inner product over all statistics of a row."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y, axis=-1), a, b)
    return sum(jax.tree.leaves(products), start=jnp.zeros(()))
