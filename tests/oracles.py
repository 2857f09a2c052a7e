"""The mathematics once more, by brute force in NumPy float64: no scan, nothing shared with the package."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def patterns(seed: int, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """A random block of rewards, values and ends: a third of the rows end somehow, a tenth are no transition."""
    generator = np.random.default_rng(seed)
    return {
        "reward": generator.normal(size=shape).astype(np.float32),
        "value": generator.normal(size=shape).astype(np.float32),
        "next_value": generator.normal(size=shape).astype(np.float32),
        "terminated": generator.random(shape) < 0.2,
        "truncated": generator.random(shape) < 0.2,
        "valid": generator.random(shape) < 0.9,
    }


def generalized_advantage(
    reward: Any,
    value: Any,
    next_value: Any,
    terminated: Any,
    truncated: Any,
    valid: Any,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """A_t = sum_k (gamma lambda)^k delta_{t+k} up to an end, the horizon, or a row that is no transition."""
    horizon, num_envs = np.shape(reward)
    advantage = np.zeros((horizon, num_envs))
    for n in range(num_envs):
        for t in range(horizon):
            for k in range(horizon - t):
                row = (t + k, n)
                if not valid[row]:
                    break
                future = 0.0 if terminated[row] else gamma * float(next_value[row])
                delta = float(reward[row]) + future - float(value[row])
                advantage[t, n] += (gamma * gae_lambda) ** k * delta
                if terminated[row] or truncated[row]:
                    break
    return advantage


def monte_carlo_return(reward: Any, next_value: Any, terminated: Any, truncated: Any, gamma: float) -> np.ndarray:
    """sum_k gamma^k r_{t+k} to the end of the episode or of the horizon, and there the value of what follows."""
    horizon, num_envs = np.shape(reward)
    total = np.zeros((horizon, num_envs))
    for n in range(num_envs):
        for t in range(horizon):
            k = 0
            while True:
                total[t, n] += gamma**k * float(reward[t + k, n])
                ended = terminated[t + k, n] or truncated[t + k, n] or t + k == horizon - 1
                if ended:
                    break
                k += 1
            if not terminated[t + k, n]:
                total[t, n] += gamma ** (k + 1) * float(next_value[t + k, n])
    return total


def discounted_return_so_far(
    reward: Any, done: Any, valid: Any, start: Any, gamma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Each step's discounted sum of its episode's rewards so far, looking back, and what remains at the end."""
    horizon, num_envs = np.shape(reward)

    def look_back(t: int, n: int) -> float:
        total, age = 0.0, 0
        for earlier in range(t, -1, -1):
            if not valid[earlier, n]:
                continue
            if done[earlier, n] and earlier < t:
                return total
            total += gamma**age * float(reward[earlier, n])
            age += 1
        return total + gamma**age * float(start[n])

    totals = np.array([[look_back(t, n) for n in range(num_envs)] for t in range(horizon)])
    end = np.zeros(num_envs)
    for n in range(num_envs):
        valid_rows = [t for t in range(horizon) if valid[t, n]]
        if not valid_rows:
            end[n] = start[n]
        elif not done[valid_rows[-1], n]:
            end[n] = totals[valid_rows[-1], n]
    return totals, end


def clipped_surrogate(ratio: float, advantage: float, clip_range: float, clip_range_high: float | None = None) -> float:
    """The clipped objective by cases: held only where the ratio has gone too far in the advantage's own direction."""
    high = clip_range if clip_range_high is None else clip_range_high
    if advantage >= 0:
        return (1 + high) * advantage if ratio > 1 + high else ratio * advantage
    return (1 - clip_range) * advantage if ratio < 1 - clip_range else ratio * advantage


def log_clipped_surrogate(ratio: float, advantage: float, clip_range: float) -> float:
    """The same with the range [exp(-clip_range), exp(clip_range)]."""
    high, low = math.exp(clip_range), math.exp(-clip_range)
    if advantage >= 0:
        return min(ratio, high) * advantage
    return max(ratio, low) * advantage


def softmax(logits: Any) -> np.ndarray:
    """exp(z_a) / sum_b exp(z_b)."""
    exponentials = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def integrate(function: Callable[[np.ndarray], np.ndarray], low: float, high: float, points: int = 200_001) -> float:
    """Simpson's rule."""
    x = np.linspace(float(low), float(high), points)
    weights = np.ones(points)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    return float(np.sum(weights * function(x)) * (x[1] - x[0]) / 3.0)


def normal_log_density(x: Any, mean: Any, std: Any) -> np.ndarray:
    """Logarithm of the density of a normal distribution."""
    return -0.5 * ((np.asarray(x, np.float64) - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)


def normal_kl(mean: float, std: float, other_mean: float, other_std: float) -> float:
    """KL(p‖q) of two normal distributions, by integrating p (log p - log q)."""

    def integrand(x: np.ndarray) -> np.ndarray:
        log_p, log_q = normal_log_density(x, mean, std), normal_log_density(x, other_mean, other_std)
        return np.exp(log_p) * (log_p - log_q)

    return integrate(integrand, mean - 12 * std, mean + 12 * std)


def closed_normal_kl(mean: float, std: float, other_mean: float, other_std: float) -> float:
    """The same, integrated by hand."""
    return math.log(other_std / std) + (std**2 + (mean - other_mean) ** 2) / (2 * other_std**2) - 0.5


def normal_entropy(mean: float, std: float) -> float:
    """-integral p log p of a normal distribution."""

    def integrand(x: np.ndarray) -> np.ndarray:
        log_p = normal_log_density(x, mean, std)
        return -np.exp(log_p) * log_p

    return integrate(integrand, mean - 12 * std, mean + 12 * std)


def stream_moments(parts: list[np.ndarray], weights: list[np.ndarray]) -> tuple[float, np.ndarray, np.ndarray]:
    """Count, mean and variance of the concatenated stream without its rows of weight zero."""
    samples = np.concatenate(parts).astype(np.float64)[np.concatenate(weights) > 0]
    return float(len(samples)), samples.mean(axis=0), samples.var(axis=0)


def finite_difference_gradient(
    function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-6
) -> np.ndarray:
    """Central differences, one element at a time."""
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def mlp(weights: list[np.ndarray], biases: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    """A tanh network."""
    x = np.asarray(x, np.float64)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = np.einsum("bi,ij->bj", x, np.asarray(weight, np.float64)) + np.asarray(bias, np.float64)
        if layer < len(weights) - 1:
            x = np.tanh(x)
    return x


def standardize(advantage: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean 0 and population deviation 1 over the rows that count."""
    counted = np.asarray(advantage, np.float64)[weight > 0]
    return (advantage - counted.mean()) / (counted.std() + 1e-8)


def ppo_loss(
    parameters: dict[str, Any],
    batch: dict[str, np.ndarray],
    *,
    clip_range: float,
    vf_coef: float,
    ent_coef: float,
    clip_range_value: float | None = None,
    normalize: bool = False,
    surrogate: str = "clip",
    clip_range_high: float | None = None,
    kl_coef: float = 0.0,
) -> float:
    """-(L^CLIP - c1 L^VF + c2 S) over the rows of weight one, a row at a time.

    `parameters` holds the networks' `policy` and `value` as (weights, biases), and `log_std` for Gaussian policies.
    The KL penalty reads the old policy's `old_outputs` (logits or means) and `old_log_std` from the batch.
    """
    # A single-precision scalar would pull whole expressions down to its own precision.
    batch = {name: leaf if leaf.dtype.kind == "i" else leaf.astype(np.float64) for name, leaf in batch.items()}
    outputs = mlp(*parameters["policy"], batch["obs"])
    values = mlp(*parameters["value"], batch["obs"])[:, 0]
    advantage = standardize(batch["advantage"], batch["weight"]) if normalize else batch["advantage"]
    losses = []
    for i in np.flatnonzero(batch["weight"]):
        if "log_std" in parameters:
            std = np.exp(parameters["log_std"])
            log_prob = float(np.sum(normal_log_density(batch["action"][i], outputs[i], std)))
            entropy = float(np.sum(np.log(std * math.sqrt(2 * math.pi * math.e))))
        else:
            probabilities = softmax(outputs[i])
            log_prob = math.log(probabilities[batch["action"][i]])
            entropy = -float(np.sum(probabilities * np.log(probabilities)))
        ratio = math.exp(log_prob - batch["log_prob"][i])
        gain = ratio * float(advantage[i])
        if surrogate == "clip":
            gain = clipped_surrogate(ratio, float(advantage[i]), clip_range, clip_range_high)
        elif surrogate == "log_clip":
            gain = log_clipped_surrogate(ratio, float(advantage[i]), clip_range)
        elif surrogate == "kl":
            if "log_std" in parameters:
                old = zip(batch["old_outputs"][i], np.exp(batch["old_log_std"]), outputs[i], std, strict=True)
                gain -= kl_coef * sum(closed_normal_kl(*row) for row in old)
            else:
                p = softmax(batch["old_outputs"][i])
                gain -= kl_coef * float(np.sum(p * np.log(p / probabilities)))
        value_error = (values[i] - batch["returns"][i]) ** 2
        if clip_range_value is not None:
            move = min(max(values[i] - batch["value"][i], -clip_range_value), clip_range_value)
            value_error = max(value_error, (batch["value"][i] + move - batch["returns"][i]) ** 2)
        losses.append(-(gain - vf_coef * value_error + ent_coef * entropy))
    return float(np.mean(losses))
