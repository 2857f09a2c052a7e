"""Trust Region Policy Optimization, arXiv:1502.05477, and the natural policy gradient.

Maximise the surrogate E[r A] subject to E[KL(old‖new)] <= delta: a step along F^-1 g, as long as the quadratic model of
the KL allows, then shortened until the constraint itself holds and the surrogate has improved.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Bool, Float

from inchworm.algorithms.batch import from_rows, minibatches, to_rows
from inchworm.algorithms.opening import opening_pass
from inchworm.algorithms.optimizer import make_direction
from inchworm.algorithms.settings import Settings, check_minibatch_size, check_numbers, check_scalars
from inchworm.algorithms.state import Algorithm, TrainState, initial_state, update_key
from inchworm.checks import check_flag, check_integer
from inchworm.errors import ConfigError
from inchworm.models import observations
from inchworm.models.actor_critic import ActorCritic, PolicyNetwork, make_model
from inchworm.models.network import CustomNetwork
from inchworm.numerics.line_search import LineSearch, backtrack, inner
from inchworm.numerics.shuffle import random_order
from inchworm.numerics.tree import all_finite, select
from inchworm.rl.diagnostics import weighted_mean
from inchworm.rl.distributions import Distribution
from inchworm.rl.schedules import Scalar
from inchworm.rl.surrogates import squared_error, surrogate
from inchworm.spaces import EnvSpec
from inchworm.types import AnyArray, Batch, Metrics, PRNGKey, Rollout

CG_TOLERANCE = 1e-10
"""Conjugate gradient stops when the residual's norm has fallen to this share of the gradient's."""


@dataclass(frozen=True, kw_only=True)
class TRPO(Settings):
    """Settings of TRPO.

    The bound is the paper's, the rest sb3-contrib's defaults, so that both can be compared. The paper has 10
    iterations of conjugate gradient and a tenth of the batch for Fisher products.
    """

    max_kl: Scalar = 0.01
    """delta, the bound on the mean KL(old‖new) of an update (the paper)."""
    cg_iters: int = 15
    """Iterations of conjugate gradient at most."""
    cg_damping: float = 0.1
    """Added to the Fisher matrix's diagonal."""
    fisher_fraction: float = 1.0
    """Share of the batch that Fisher-vector products are averaged over; the line search always takes all of it."""
    line_search: bool = True
    """False takes the full step whatever the KL comes to: the natural policy gradient."""
    max_backtracks: int = 10
    """Step lengths that are tried."""
    shrink: float = 0.8
    """Each is this share of the one before."""
    value_learning_rate: Scalar = 1e-3
    """Adam's step size for the value function."""
    num_value_epochs: int = 10
    """Passes of the value function over the batch in an iteration."""
    minibatch_size: int = 128
    """Transitions in a gradient step of the value function; must divide num_envs * horizon."""
    adam_epsilon: float = 1e-5
    """Adam's epsilon."""

    def __post_init__(self) -> None:
        super().__post_init__()
        integers = {"cg_iters": 1, "max_backtracks": 1, "num_value_epochs": 1, "minibatch_size": 2}
        for name, minimum in integers.items():
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum))
        check_minibatch_size(self.minibatch_size, self)
        check_scalars(
            self,
            max_kl={"above": 0.0, "minimum": 0.0},
            value_learning_rate={"above": 0.0, "minimum": 0.0},
        )
        check_numbers(
            self,
            cg_damping={"minimum": 0.0},
            fisher_fraction={"above": 0.0, "maximum": 1.0},
            shrink={"above": 0.0, "maximum": 1.0},
            adam_epsilon={"above": 0.0},
        )
        check_flag("line_search", self.line_search)
        if self.normalize_advantage == "minibatch":
            raise ConfigError(
                "normalize_advantage", "minibatch", "has no meaning, the policy sees the whole batch", 'Take "batch".'
            )
        if self.shared_trunk:
            raise ConfigError(
                "shared_trunk",
                True,
                "would let the value function's steps move the policy out of its trust region",
                "Take separate networks with TRPO, or PPO with a shared trunk.",
            )

    def unread(self) -> dict[str, str]:
        unread = super().unread()
        if not self.line_search:
            unread |= dict.fromkeys(("max_backtracks", "shrink"), "the line search of TRPO")
        return unread


@dataclass(frozen=True, kw_only=True)
class NPG(TRPO):
    """Settings of the natural policy gradient (Kakade 2001), with the step length of TRPO's quadratic model: TRPO whose
    full step is taken whatever comes of it."""

    line_search: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.line_search:
            raise ConfigError(
                "line_search", True, "would make TRPO of the natural policy gradient", "Leave it out, or take TRPO."
            )


def make(
    config: TRPO,
    spec: EnvSpec,
    total_steps: int,
    custom_network: CustomNetwork | None = None,
    custom_optimizer: optax.GradientTransformation | None = None,
) -> Algorithm:
    """TRPO for environments of one specification; `custom_optimizer` is the value function's.

    Raises:
        UnsupportedSpaceError: no policy handles one of the spaces.
    """
    direction = make_direction(config.adam_epsilon, None, False, custom_optimizer)
    recurrent = config.recurrent != "none"

    def init(key: PRNGKey) -> TrainState:
        model_key, run_key = jax.random.split(key)
        model = make_model(model_key, spec, config, custom_network)
        return initial_state(config, spec, run_key, model, direction.init(model.value), {})  # type: ignore[arg-type]

    def update(state: TrainState, rollout: Rollout) -> tuple[TrainState, Metrics]:
        now = config.at(state.iteration * float(config.steps_per_iteration), total_steps)
        normalizers = observations.freeze(state.obs_stats)
        assert isinstance(state.model, ActorCritic)
        policy, value = state.model.policy, state.model.value
        batch, old, metrics = opening_pass(state.model, normalizers, rollout, config, now)
        fisher_key, value_key = jax.random.split(update_key(state.key, state.iteration))

        rows = to_rows(batch._replace(old=old), recurrent)

        def distribution_of(policy: PolicyNetwork, rows: Batch) -> Distribution:
            carry = None if rows.carry is None else rows.carry[0]
            return policy.unroll(normalizers, rows.obs, rows.first, rows.mask, carry)[0]

        whole = from_rows(rows, recurrent)
        sample = from_rows(_subsample(rows, fisher_key, config.fisher_fraction), recurrent)
        step = trust_region_step(
            policy,
            lambda policy: surrogate_and_kl(distribution_of(policy, whole), whole),
            fisher_vector_product(policy, lambda policy: distribution_of(policy, sample), sample.weight),
            now["max_kl"],
            config,
        )

        def value_loss(value: Any, minibatch: Batch) -> Float[Array, ""]:
            carry = None if minibatch.carry is None else minibatch.carry[1]
            predicted, _ = value.unroll(normalizers, minibatch.obs, minibatch.first, carry)
            return weighted_mean(squared_error(predicted[..., 0], minibatch.returns), minibatch.weight)

        def value_step(carry: Any, rows: Batch) -> Any:
            value, opt_state = carry
            loss, gradient = jax.value_and_grad(value_loss)(value, from_rows(rows, recurrent))
            step, opt_state = direction.update(gradient, opt_state, value)
            value = jax.tree.map(lambda p, d: p - now["value_learning_rate"] * d, value, step)
            return (value, opt_state), loss

        value_rows = rows._replace(old=None, action=None, mask=None)

        def value_epoch(carry: Any, key: PRNGKey) -> Any:
            num_minibatches = config.steps_per_iteration // config.minibatch_size
            return jax.lax.scan(value_step, carry, minibatches(value_rows, key, num_minibatches))

        keys = jax.random.split(value_key, config.num_value_epochs)
        (value, opt_state), losses = jax.lax.scan(value_epoch, (value, state.opt_state), keys)

        new = distribution_of(step.search.point, whole)
        gain, kl = surrogate_and_kl(new, whole)
        improvement = jnp.where(step.search.accepted, gain - step.surrogate_before, 0.0)
        metrics |= {
            "loss/policy": -gain,
            "loss/value": jnp.mean(losses),
            "loss/gradient_norm": step.gradient_norm,
            "policy/kl": kl,
            "policy/entropy": weighted_mean(new.entropy(), whole.weight),
            "trpo/accepted": step.search.accepted.astype(jnp.float32),
            "trpo/backtracks": step.search.tries.astype(jnp.float32) - 1.0,
            "trpo/expected_improvement": step.expected_improvement,
            "trpo/improvement": improvement,
            "schedule/max_kl": now["max_kl"],
        }
        model = ActorCritic(step.search.point, value, spec.observation_space, spec.action_space)
        return state._replace(model=model, opt_state=opt_state), metrics

    return Algorithm(init, update)


def surrogate_and_kl(new: Distribution, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The surrogate E[r A] and the mean KL(old‖new) over all valid rows, old being `batch.old`."""
    gain = surrogate(new.log_prob(batch.action) - batch.log_prob, batch.advantage)
    return weighted_mean(gain, batch.weight), weighted_mean(batch.old.kl(new), batch.weight)


def fisher_vector_product(
    policy: PolicyNetwork, distribution_of: Callable[[PolicyNetwork], Distribution], weight: Float[AnyArray, "*batch"]
) -> Callable[[PolicyNetwork], PolicyNetwork]:
    """The function v -> F v, with F the Hessian of the mean KL(old‖new) in the policy's parameters, at new = old.

    F is never formed. With J the Jacobian of the distributions' statistics (logits, means, ...) in the parameters and
    H the KL's Hessian in the statistics, F = J^T H J exactly, because the KL's gradient in the statistics is zero where
    new = old (arXiv:1502.05477, appendix C).
    """
    old, transposed = jax.vjp(distribution_of, policy)
    jacobian_product = jax.linear_transpose(transposed, old)  # memory cores know reverse mode only

    def mean_kl(new: Distribution) -> Float[Array, ""]:
        return weighted_mean(old.kl(new), weight)

    def product(vector: PolicyNetwork) -> PolicyNetwork:
        (tangent,) = jacobian_product((vector,))
        _, curved = jax.jvp(jax.grad(mean_kl), (old,), (tangent,))
        return transposed(curved)[0]

    return product


class TrustRegionStep(NamedTuple):
    """What became of an update of the policy."""

    search: LineSearch
    gradient_norm: Float[Array, ""]
    expected_improvement: Float[Array, ""]
    """Of the surrogate by the full step, to first order."""
    surrogate_before: Float[Array, ""]


def trust_region_step(
    policy: PolicyNetwork,
    evaluate: Callable[[PolicyNetwork], tuple[Float[Array, ""], Float[Array, ""]]],
    fisher_product: Callable[[PolicyNetwork], PolicyNetwork],
    max_kl: Float[Array, ""],
    config: TRPO,
) -> TrustRegionStep:
    """The policy after theta + shrink^j sqrt(2 delta / x^T F x) x, with x = F^-1 g by conjugate gradient, F damped.

    The first j is taken for which KL <= delta and the surrogate is better than before; if there is none, or the
    direction is useless (g = 0, or x^T F x not positive), the parameters stay as they are, bit for bit.

    Args:
        policy: theta_old.
        evaluate: the surrogate and the mean KL of a policy.
        fisher_product: v -> F v.
        max_kl: delta.
        config: damping and the line search.
    """
    before, gradient = jax.value_and_grad(lambda policy: evaluate(policy)[0])(policy)

    def damped(vector: PolicyNetwork) -> PolicyNetwork:
        return jax.tree.map(lambda f, v: f + config.cg_damping * v, fisher_product(vector), vector)

    direction, _ = cg(damped, gradient, tol=CG_TOLERANCE, maxiter=config.cg_iters)
    curvature = inner(direction, damped(direction))
    usable = (curvature > 0) & all_finite((direction, curvature))
    length = jnp.where(usable, jnp.sqrt(2.0 * max_kl / jnp.where(usable, curvature, 1.0)), 0.0)
    direction = select(usable, direction, jax.tree.map(jnp.zeros_like, direction))
    full_step = jax.tree.map(lambda d: length * d, direction)

    def acceptable(candidate: PolicyNetwork) -> Bool[Array, ""]:
        if not config.line_search:
            return usable
        gain, kl = evaluate(candidate)
        # Comparisons with NaN are false, so that a step into it is never taken.
        return usable & (gain > before) & (kl <= max_kl)

    search = backtrack(acceptable, policy, full_step, config.shrink, config.max_backtracks if config.line_search else 1)
    return TrustRegionStep(
        search,
        optax.tree.norm(gradient),
        inner(gradient, full_step),
        before,
    )


def _subsample(rows: Batch, key: PRNGKey, fraction: float) -> Batch:
    """A random share of the rows, at least one."""
    if fraction == 1.0:
        return rows
    total = rows.weight.shape[0]
    chosen = random_order(key, total)[: max(1, round(fraction * total))]
    return jax.tree.map(lambda leaf: leaf[chosen], rows)
