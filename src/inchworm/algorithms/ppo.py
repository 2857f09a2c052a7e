"""Proximal Policy Optimization, arXiv:1707.06347, Algorithm 1, with any of its surrogates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from inchworm.algorithms.batch import from_rows, minibatches, to_rows, unroll
from inchworm.algorithms.opening import advantages_and_returns, in_units, opening_pass
from inchworm.algorithms.optimizer import (
    adapted_learning_rate,
    check_two_optimizers,
    descend,
    make_direction,
    with_adapted_rates,
)
from inchworm.algorithms.settings import Now, Settings, check_minibatch_size, check_numbers, check_scalars
from inchworm.algorithms.state import Algorithm, TrainState, initial_state, update_key
from inchworm.checks import check_choice, check_flag, check_integer
from inchworm.errors import ConfigError
from inchworm.models import observations
from inchworm.models.actor_critic import Model, make_model
from inchworm.models.network import CustomNetwork
from inchworm.models.observations import Normalizers
from inchworm.numerics.tree import select
from inchworm.rl.diagnostics import clip_fraction, standardize, weighted_mean
from inchworm.rl.schedules import Scalar, Schedule
from inchworm.rl.surrogates import (
    clipped_squared_error,
    clipped_surrogate,
    log_clipped_surrogate,
    squared_error,
    surrogate,
)
from inchworm.spaces import EnvSpec
from inchworm.types import Batch, Metrics, PRNGKey, Rollout

KL_COEF_RANGE = (1e-8, 1e8)
"""An adaptive beta stays within this."""


@dataclass(frozen=True, kw_only=True)
class PPO(Settings):
    """Settings of PPO.

    Defaults are Table 3 of the paper; what the paper does not say but the authors' code (openai/baselines ppo1)
    does is marked "authors' code", what came later (ppo2, 2018) is off and marked so.
    """

    num_epochs: int = 10
    """Passes over the batch in an iteration, K (Table 3)."""
    minibatch_size: int = 64
    """Transitions in a gradient step, M (Table 3); must divide num_envs * horizon."""
    learning_rate: Scalar = "linear:3e-4:0"
    """Adam's step size: 3e-4 (Table 3), going to 0 over the budget (authors' code)."""
    value_learning_rate: Scalar | None = None
    """Step size of an optimiser of the value function's own; None for one optimiser of both."""
    adam_epsilon: float = 1e-5
    """Adam's epsilon (authors' code)."""
    surrogate: Literal["clip", "log_clip", "none", "kl"] = "clip"
    """What moves the policy: equation (7), its clip in log space (section 6.1), the ratio alone, equation (6), or
    the ratio with a penalty on the KL divergence, equation (8)."""
    clip_range: Scalar = 0.2
    """epsilon of the clipped surrogates."""
    clip_range_high: Scalar | None = None
    """epsilon of the range's upper end, where it is another (not in the paper)."""
    kl_coef: Scalar = 1.0
    """beta of equation (8); only where it starts if target_kl moves it."""
    target_kl: Scalar | None = None
    """Aim for the mean KL(old‖new) of an update; `kl_control` says what is done about it."""
    kl_control: Literal["auto", "penalty", "stop", "roll_back", "learning_rate"] = "auto"
    """With target_kl: move beta (section 4), leave out the epochs after KL > 1.5 target_kl, undo that epoch too, or
    move the learning rate (Table 4); auto moves beta where there is one, and stops where there is none."""
    vf_coef: Scalar = 1.0
    """c1 of equation (9), on the squared error without one half."""
    ent_coef: Scalar = 0.0
    """c2 of equation (9), on the analytic entropy; not used on MuJoCo in the paper."""
    recompute_advantages: bool = False
    """Advantages and value targets anew from the current value function at each epoch (not in the paper)."""
    max_grad_norm: float | None = None
    """Clip the gradient's global norm (ppo2, not in the paper)."""
    clip_range_value: float | None = None
    """Keep new values this near the old ones (ppo2, not in the paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, minimum in {"num_epochs": 1, "minibatch_size": 2}.items():
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum))
        check_minibatch_size(self.minibatch_size, self)
        check_scalars(
            self,
            learning_rate={"above": 0.0, "minimum": 0.0},
            value_learning_rate={"above": 0.0, "minimum": 0.0},
            clip_range={"above": 0.0, "minimum": 0.0},
            clip_range_high={"above": 0.0, "minimum": 0.0},
            kl_coef={"minimum": 0.0},
            target_kl={"above": 0.0, "minimum": 0.0},
            vf_coef={"minimum": 0.0},
            ent_coef={"minimum": 0.0},
        )
        check_numbers(self, adam_epsilon={"above": 0.0}, max_grad_norm={"above": 0.0}, clip_range_value={"above": 0.0})
        check_choice("surrogate", self.surrogate, ("clip", "log_clip", "none", "kl"))
        check_choice("kl_control", self.kl_control, ("auto", "penalty", "stop", "roll_back", "learning_rate"))
        check_flag("recompute_advantages", self.recompute_advantages)
        check_two_optimizers(self.shared_trunk, self.value_learning_rate)
        if self.target_kl is None and self.kl_control != "auto":
            raise ConfigError("kl_control", self.kl_control, "has nothing to aim for", "Set target_kl too, e.g. 0.01.")
        if self.kl_control == "penalty" and self.surrogate != "kl":
            raise ConfigError(
                "kl_control",
                self.kl_control,
                f"moves a penalty that surrogate = {self.surrogate} does not have",
                'Set surrogate to "kl", or kl_control to stop, roll_back or learning_rate.',
            )
        kl_coef = cast(Schedule, self.kl_coef)
        if self.controls_kl_by("penalty") and (kl_coef.start != kl_coef.end or kl_coef.start == 0):
            raise ConfigError(
                "kl_coef",
                str(kl_coef),
                "is where a penalty starts that target_kl then moves by factors of 2",
                "Give one number above 0, or leave out target_kl.",
            )

    @property
    def gradient_steps_per_iteration(self) -> int:
        """K N T / M."""
        return self.num_epochs * self.minibatches_per_epoch

    @property
    def minibatches_per_epoch(self) -> int:
        """N T / M."""
        return self.steps_per_iteration // self.minibatch_size

    def controls_kl_by(self, control: str) -> bool:
        """True if target_kl is set and does this."""
        auto = "penalty" if self.surrogate == "kl" else "stop"
        return self.target_kl is not None and control == (auto if self.kl_control == "auto" else self.kl_control)

    def unread(self) -> dict[str, str]:
        unread = super().unread()
        if self.surrogate in ("kl", "none"):
            unread |= dict.fromkeys(("clip_range", "clip_range_high"), "surrogate = clip or log_clip")
        if self.surrogate != "kl":
            unread["kl_coef"] = "surrogate = kl"
        if self.num_epochs == 1:
            unread["recompute_advantages"] = "num_epochs above 1"
        return unread


def make(
    config: PPO,
    spec: EnvSpec,
    total_steps: int,
    custom_network: CustomNetwork | None = None,
    custom_optimizer: optax.GradientTransformation | None = None,
) -> Algorithm:
    """PPO for environments of one specification and a budget of `total_steps` environment steps.

    Raises:
        UnsupportedSpaceError: no policy handles one of the spaces.
    """
    two_optimizers = config.value_learning_rate is not None
    direction = make_direction(config.adam_epsilon, config.max_grad_norm, two_optimizers, custom_optimizer)
    recurrent = config.recurrent != "none"

    def init(key: PRNGKey) -> TrainState:
        model_key, run_key = jax.random.split(key)
        model = make_model(model_key, spec, config, custom_network)
        adaptive = (
            {"kl_coef": jnp.float32(cast(Schedule, config.kl_coef).start)} if config.controls_kl_by("penalty") else {}
        )
        adaptive |= {"learning_rate_scale": jnp.float32(1.0)} if config.controls_kl_by("learning_rate") else {}
        return initial_state(config, spec, run_key, model, direction.init(model), adaptive)  # type: ignore[arg-type]

    def update(state: TrainState, rollout: Rollout) -> tuple[TrainState, Metrics]:
        now = _now(config, state, total_steps)
        normalizers = observations.freeze(state.obs_stats)
        opening = opening_pass(state.model, normalizers, rollout, config, now)
        batch = opening.batch._replace(old=opening.old if config.surrogate == "kl" else None)

        def kl_of(model: Model) -> Float[Array, ""]:
            return weighted_mean(opening.old.kl(unroll(model, normalizers, rollout).distribution), batch.weight)

        def minibatch_step(carry: Any, rows: Batch) -> Any:
            model, opt_state = carry
            minibatch = from_rows(rows, recurrent)
            gradient, metrics = jax.grad(_loss, has_aux=True)(model, normalizers, minibatch, config, now)
            step, opt_state = direction.update(gradient, opt_state, model)
            model = descend(model, step, now["learning_rate"], now.get("value_learning_rate"))
            return (model, opt_state), metrics | {"loss/gradient_norm": optax.tree.norm(gradient)}

        def epoch(carry: Any, key: PRNGKey) -> Any:
            current = batch
            if config.recompute_advantages:
                _, value, carries = unroll(carry[0], normalizers, rollout)
                advantage, returns = advantages_and_returns(carry[0], normalizers, rollout, value, carries, config, now)
                current = batch._replace(advantage=in_units(advantage, rollout, config), returns=returns)
            rows = minibatches(to_rows(current, recurrent), key, config.minibatches_per_epoch)
            return jax.lax.scan(minibatch_step, carry, rows)

        start = (state.model, state.opt_state)
        keys = jax.random.split(update_key(state.key, state.iteration), config.num_epochs)
        if config.controls_kl_by("stop") or config.controls_kl_by("roll_back"):
            (model, opt_state), metrics = _epochs_until(
                lambda carry: kl_of(carry[0]) > 1.5 * now["target_kl"], epoch, start, keys, config.kl_control
            )
        else:
            (model, opt_state), steps = jax.lax.scan(epoch, start, keys)
            metrics = jax.tree.map(jnp.mean, steps)

        new = unroll(model, normalizers, rollout).distribution
        kl = weighted_mean(opening.old.kl(new), batch.weight)
        metrics |= opening.metrics | {
            "policy/kl": kl,
            "policy/entropy": weighted_mean(new.entropy(), batch.weight),
            "schedule/learning_rate": now["learning_rate"],
        }
        match config.surrogate:
            case "clip" | "log_clip":
                metrics["schedule/clip_range"] = now["clip_range"]
            case "kl":
                metrics["schedule/kl_coef"] = now["kl_coef"]
        return state._replace(model=model, opt_state=opt_state, adaptive=_adapt(state, config, now, kl)), metrics

    return Algorithm(init, update)


def _now(config: PPO, state: TrainState, total_steps: int) -> Now:
    """Every scalar at this point of the run, those that adapt included."""
    now = config.at(state.iteration * float(config.steps_per_iteration), total_steps)
    now["kl_coef"] = state.adaptive.get("kl_coef", now["kl_coef"])
    return with_adapted_rates(now, state.adaptive)


def _adapt(state: TrainState, config: PPO, now: Now, kl: Float[Array, ""]) -> dict[str, Any]:
    """What moves with the KL of this update, for the next one."""
    adaptive = dict(state.adaptive)
    if config.controls_kl_by("penalty"):
        adaptive["kl_coef"] = adapted_kl_coef(now["kl_coef"], kl, now["target_kl"])
    if config.controls_kl_by("learning_rate"):
        adaptive["learning_rate_scale"] = adapted_learning_rate(adaptive["learning_rate_scale"], kl, now["target_kl"])
    return adaptive


def _epochs_until(
    too_far: Callable[[Any], Bool[Array, ""]], epoch: Any, start: Any, keys: PRNGKey, control: str
) -> tuple[Any, Metrics]:
    """Epochs one after the other, leaving out those after one that went too far, or undoing that one as well."""

    def epoch_unless_stopped(carry: Any, key: PRNGKey) -> Any:
        before, stopped = carry

        def run() -> Any:
            after, steps = epoch(before, key)
            stop = too_far(after)
            counted = {"policy/epochs": jnp.float32(1.0)}
            if control == "roll_back":
                after = select(stop, before, after)
                counted["policy/rolled_back"] = stop.astype(jnp.float32)
            return (after, stop), (jax.tree.map(jnp.mean, steps), counted)

        def skip() -> Any:
            return carry, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run)[1])

        return jax.lax.cond(stopped, skip, run)

    (end, _), (epochs, counted) = jax.lax.scan(epoch_unless_stopped, (start, jnp.array(False)), keys)
    counts = jax.tree.map(jnp.sum, counted)
    return end, jax.tree.map(lambda leaf: jnp.sum(leaf) / counts["policy/epochs"], epochs) | counts


def adapted_kl_coef(kl_coef: Float[Array, ""], kl: Float[Array, ""], target_kl: Float[Array, ""]) -> Float[Array, ""]:
    """beta for the next update, section 4: halved if d < d_targ / 1.5, doubled if d > 1.5 d_targ."""
    factor = jnp.where(kl < target_kl / 1.5, 0.5, jnp.where(kl > 1.5 * target_kl, 2.0, 1.0))
    return jnp.clip(kl_coef * factor, *KL_COEF_RANGE)


def _loss(
    model: Model, normalizers: Normalizers, minibatch: Batch, config: PPO, now: Now
) -> tuple[Float[Array, ""], Metrics]:
    """Equation (9) with its sign turned: -(L^CLIP - c1 L^VF + c2 S), averaged over the valid rows.

    L^CLIP stands for whichever surrogate is chosen.
    """
    weight, advantage = minibatch.weight, minibatch.advantage
    if config.normalize_advantage == "minibatch":
        advantage = standardize(advantage, weight)
    new, value, _ = unroll(model, normalizers, minibatch)
    log_ratio = new.log_prob(minibatch.action) - minibatch.log_prob

    low, high = now["clip_range"], now.get("clip_range_high", now["clip_range"])
    metrics = {}
    match config.surrogate:
        case "clip":
            gain = clipped_surrogate(log_ratio, advantage, low, high)
            metrics["policy/clip_fraction"] = clip_fraction(log_ratio, low, weight, high)
        case "log_clip":
            gain = log_clipped_surrogate(log_ratio, advantage, low, high)
            metrics["policy/clip_fraction"] = clip_fraction(log_ratio, -jnp.expm1(-low), weight, jnp.expm1(high))
        case "none":
            gain = surrogate(log_ratio, advantage)
        case "kl":
            gain = surrogate(log_ratio, advantage) - now["kl_coef"] * minibatch.old.kl(new)
    policy_loss = -weighted_mean(gain, weight)

    if config.clip_range_value is None:
        value_error = squared_error(value, minibatch.returns)
    else:
        value_error = clipped_squared_error(value, minibatch.value, minibatch.returns, config.clip_range_value)
    value_loss = weighted_mean(value_error, weight)
    entropy = weighted_mean(new.entropy(), weight)

    loss = policy_loss + now["vf_coef"] * value_loss - now["ent_coef"] * entropy
    return loss, metrics | {"loss/policy": policy_loss, "loss/value": value_loss}
