"""How gradients become steps: a direction from optax, times a learning rate that may move over the run."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from inchworm.algorithms.settings import Now
from inchworm.errors import ConfigError
from inchworm.models.actor_critic import Model


def make_direction(
    adam_epsilon: float,
    max_grad_norm: float | None,
    two_optimizers: bool,
    custom: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """The direction of a step, without its learning rate: clipping by the global norm, then Adam.

    Args:
        adam_epsilon: Adam's epsilon.
        max_grad_norm: bound on the norm over all parameters, or None.
        two_optimizers: policy and value function each have one of their own, with norms of their own.
        custom: an optax chain to take instead.

    Raises:
        ConfigError: the custom chain holds a learning rate.
    """
    clip_norm = [] if max_grad_norm is None else [optax.clip_by_global_norm(max_grad_norm)]
    direction = custom or optax.chain(*clip_norm, optax.scale_by_adam(eps=adam_epsilon))
    if custom is not None:
        _check_uphill(custom)
    if not two_optimizers:
        return direction
    return optax.partition({"policy": direction, "value": direction}, _labels)


def descend(
    model: Model, step: Any, learning_rate: Float[Array, ""], value_learning_rate: Float[Array, ""] | None = None
) -> Model:
    """The model after a step against the gradient; with two learning rates the second is the value function's."""
    if value_learning_rate is None:
        return jax.tree.map(lambda p, d: p - learning_rate * d, model, step)
    rates = jax.tree.map(lambda label: value_learning_rate if label == "value" else learning_rate, _labels(model))
    return jax.tree.map(lambda p, d, rate: p - rate * d, model, step, rates)


def check_two_optimizers(shared_trunk: bool, value_learning_rate: Any) -> None:
    """Raises `ConfigError` if a shared trunk would be moved by two optimisers."""
    if shared_trunk and value_learning_rate is not None:
        raise ConfigError(
            "value_learning_rate",
            str(value_learning_rate),
            "asks for two optimisers, and both would move the shared trunk",
            "Leave it out, or set shared_trunk to False.",
        )


def with_adapted_rates(now: Now, adaptive: dict[str, Any]) -> Now:
    """The scalars with their learning rates times the factor that `adapted_learning_rate` moves, if it does."""
    scale = adaptive.get("learning_rate_scale", 1.0)
    return now | {name: now[name] * scale for name in ("learning_rate", "value_learning_rate") if name in now}


def adapted_learning_rate(
    scale: Float[Array, ""], kl: Float[Array, ""], target_kl: Float[Array, ""]
) -> Float[Array, ""]:
    """The factor on the learning rate after a batch whose update moved the policy by `kl`.

    Divided by 1.5 if kl > 2 target_kl, multiplied by 1.5 if kl < target_kl / 2. This is the rule of the course whose
    "vanilla policy gradient with adaptive stepsize" the paper compares with (CS294-112, homework 4); the paper says
    "similar to Section 4". Kept within [1e-4, 1e4].
    """
    factor = jnp.where(kl > 2.0 * target_kl, 1.0 / 1.5, jnp.where(kl < 0.5 * target_kl, 1.5, 1.0))
    return jnp.clip(scale * factor, 1e-4, 1e4)


def _labels(model: Any) -> Any:
    """Which optimiser each parameter belongs to, by the field of the model it lies in."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "value" if path[0].name == "value" else "policy", model)


def _check_uphill(direction: optax.GradientTransformation) -> None:
    gradient = {"w": jnp.ones(2)}
    step, _ = direction.update(gradient, direction.init(cast(optax.Params, gradient)), gradient)
    if not float(jnp.vdot(cast(Any, step)["w"], gradient["w"])) > 0:
        raise ConfigError(
            "optimizer",
            "an optax chain",
            "turns a gradient round, as chains that hold their learning rate do",
            "Leave the learning rate out, as in optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_rms()); "
            "learning_rate multiplies what the chain gives.",
        )
