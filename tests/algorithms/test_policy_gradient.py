"""One gradient step per rollout: the gradient is the policy gradient, the adaptive step size follows its rule, and the
trust region holds a step back as its equation says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from inchworm.algorithms import policy_gradient
from inchworm.algorithms.optimizer import adapted_learning_rate, make_direction
from inchworm.algorithms.policy_gradient import A2C, REINFORCE, PolicyGradient, trust_region_gain
from inchworm.algorithms.ppo import adapted_kl_coef
from inchworm.errors import ConfigError
from inchworm.models.settings import to_json
from inchworm.rl.distributions import Categorical, DiagonalGaussian
from inchworm.spaces import Box, Discrete, EnvSpec
from inchworm.types import Batch


def test_the_step_size_falls_above_twice_and_rises_below_half_of_the_target():
    scale = jnp.float32(1.0)
    rates = []
    for kl in (0.03, 0.021, 0.02, 0.01, 0.005, 0.0049, 0.001):
        scale = adapted_learning_rate(scale, jnp.float32(kl), jnp.float32(0.01))
        rates.append(float(scale))
    # By hand: / 1.5, / 1.5, then three times as it was (the bounds themselves change nothing), * 1.5, * 1.5.
    np.testing.assert_allclose(rates, [1 / 1.5, 1 / 2.25, 1 / 2.25, 1 / 2.25, 1 / 2.25, 1 / 1.5, 1.0], rtol=1e-6)


def test_the_step_size_s_factor_stays_between_a_ten_thousandth_and_ten_thousand():
    for scale, kl, end in ((1.2e-4, 1.0, 1e-4), (0.9e4, 0.0, 1e4)):
        assert adapted_learning_rate(jnp.float32(scale), jnp.float32(kl), jnp.float32(0.01)) == pytest.approx(end)


def test_beta_follows_a_sequence_worked_by_hand_and_stays_in_its_range():
    beta, betas = jnp.float32(1.0), []
    for kl in (0.02, 0.016, 0.0149, 0.01, 0.0068, 0.0066, 0.0):
        beta = adapted_kl_coef(beta, jnp.float32(kl), jnp.float32(0.01))
        betas.append(float(beta))
    # d_targ = 0.01: doubled above 0.015, halved below 0.00667.
    assert betas == [2.0, 4.0, 4.0, 4.0, 4.0, 2.0, 1.0]
    assert float(adapted_kl_coef(jnp.float32(1e-8), jnp.float32(0.0), jnp.float32(0.01))) == pytest.approx(1e-8)
    assert float(adapted_kl_coef(jnp.float32(1e8), jnp.float32(1.0), jnp.float32(0.01))) == pytest.approx(1e8)


def rows(advantage, action):
    ones = np.ones_like(advantage)
    return Batch(None, None, action, None, None, 0 * ones, advantage, ones, ones, ones)


def test_within_the_bound_the_trust_region_changes_nothing():
    logits = np.float32([[[0.3, -0.2, 0.1]]])
    batch = rows(np.float32([[2.0]]), np.int32([[1]]))
    new, average = Categorical(jnp.asarray(logits)), Categorical(jnp.asarray(logits))
    # At the average itself k = 0.
    held = jax.grad(lambda d: trust_region_gain(d, average, batch, 1.0).sum())(new)
    free = jax.grad(lambda d: (d.log_prob(batch.action) * batch.advantage).sum())(new)
    np.testing.assert_allclose(held.logits, free.logits, atol=1e-6)


def test_beyond_the_bound_the_gradient_loses_what_it_has_along_the_kl():
    new = DiagonalGaussian(jnp.float32([[[1.0]]]), jnp.float32([[[0.0]]]))
    average = DiagonalGaussian(jnp.float32([[[0.0]]]), jnp.float32([[[0.0]]]))
    batch = rows(np.float32([[4.0]]), np.float32([[[2.0]]]))
    # By hand, with mean m = 1, s = log_std = 0, action 2: g = A ((a - m), (a - m)^2 - 1) = (4, 0), and
    # KL(average‖new) = s + (1 + m^2) / (2 e^{2s}) - 1/2 gives k = (m, 1 - (1 + m^2)) = (1, -1).
    # k.g = 4, |k|^2 = 2, bound 1: g - (4 - 1) / 2 k = (2.5, 1.5).
    held = jax.grad(lambda d: trust_region_gain(d, average, batch, 1.0).sum())(new)
    np.testing.assert_allclose(held.mean.ravel(), [2.5], atol=1e-5)
    np.testing.assert_allclose(held.log_std.ravel(), [1.5], atol=1e-5)


@pytest.mark.parametrize(("bound", "action"), [(5.0, 2.0), (4.0, 2.0), (0.5, 0.0)])
def test_a_step_that_keeps_to_the_bound_or_goes_back_to_the_average_is_left_alone(bound, action):
    new = DiagonalGaussian(jnp.float32([[[1.0]]]), jnp.float32([[[0.0]]]))
    average = DiagonalGaussian(jnp.float32([[[0.0]]]), jnp.float32([[[0.0]]]))
    batch = rows(np.float32([[4.0]]), np.float32([[[action]]]))
    # As above k = (1, -1). Action 2 gives g = (4, 0) and k.g = 4; action 0, towards the average, (-4, 0) and -4.
    held = jax.grad(lambda d: trust_region_gain(d, average, batch, bound).sum())(new)
    np.testing.assert_allclose(held.mean.ravel(), [4.0 * (action - 1.0)], atol=1e-5)
    np.testing.assert_allclose(held.log_std.ravel(), [0.0], atol=1e-5)


CHOICE = EnvSpec(Box((3,), "float32", -1.0, 1.0), Discrete(4))
SMALL = {"num_envs": 3, "horizon": 8, "hidden_sizes": (4,), "gamma": 0.9, "adam_epsilon": 0.1}


def updated(made_up, act_out, config):
    """The state before and after an update, the metrics, and the rollout with rows that are no transition."""
    algorithm = policy_gradient.make(config, CHOICE, 1000)
    state = made_up(algorithm.init)
    rollout = act_out(state, (8, 3), seed=2, invalid=0.2)
    if not config.baseline:
        rollout = rollout._replace(tail=np.float32([0.5, -1.0, 2.0]))
    after, metrics = jax.jit(algorithm.update)(state, rollout)
    return state, after, metrics, rollout


@pytest.mark.parametrize("baseline", [True, False])
def test_the_loss_is_the_policy_gradient_s_the_value_function_s_error_if_there_is_one_and_the_entropy_as_a_bonus(
    made_up, act_out, baseline
):
    config = A2C(**SMALL, ent_coef=0.3, vf_coef=0.7, baseline=baseline)
    state, after, metrics, rollout = updated(made_up, act_out, config)
    policy, value = state.model.policy.network.layers, state.model.value.layers
    rows, next_rows = (np.clip(obs, -5, 5).reshape(24, 3) for obs in (rollout.obs, rollout.next_obs))
    action, valid = rollout.action.ravel(), rollout.valid.ravel()
    values, next_values = (oracles.mlp(value.weights, value.biases, each)[:, 0] for each in (rows, next_rows))
    if not baseline:
        values, next_values = np.zeros(24), np.repeat([0.0, 1.0], [21, 3]) * np.tile([0.5, -1.0, 2.0], 8)
        next_values[rollout.truncated.ravel()] = 0.0
    flags = (rollout.terminated, rollout.truncated, rollout.valid)
    pair = (values.reshape(8, 3), next_values.reshape(8, 3))
    advantage = oracles.generalized_advantage(rollout.reward, *pair, *flags, 0.9, 1.0).ravel()

    def policy_loss(bias, ent_coef):
        p = oracles.softmax(oracles.mlp(policy.weights, [policy.biases[0], bias], rows))
        gain = np.log(p[np.arange(24), action]) * advantage - ent_coef * (p * np.log(p)).sum(axis=1)
        return -float(gain[valid].mean())

    def value_loss(bias):
        predicted = oracles.mlp(value.weights, [value.biases[0], bias], rows)[:, 0]
        return float(np.mean((predicted - advantage - values)[valid] ** 2))

    def moves(layers, before, loss):
        slope = oracles.finite_difference_gradient(loss, before.biases[1])
        # The first step of Adam is g / (|g| + epsilon), of a gradient that is clipped by its norm over all parameters.
        slope *= min(1.0, 0.5 / metrics["loss/gradient_norm"])
        expected = -7e-4 * slope / (np.abs(slope) + 0.1)
        np.testing.assert_allclose(layers.biases[1] - before.biases[1], expected, rtol=2e-3, atol=1e-8)

    assert metrics["loss/policy"] == pytest.approx(policy_loss(policy.biases[1], 0.0), rel=1e-4)
    moves(after.model.policy.network.layers, policy, lambda bias: policy_loss(bias, 0.3))
    if baseline:
        assert metrics["loss/value"] == pytest.approx(value_loss(value.biases[1]), rel=1e-4)
        moves(after.model.value.layers, value, lambda bias: 0.7 * value_loss(bias))
    else:
        assert "loss/value" not in metrics
        for ours, theirs in zip(*map(jax.tree.leaves, (after.model.value, state.model.value)), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_an_update_is_held_back_by_a_narrow_trust_region_and_by_no_wide_one(made_up, act_out):
    bias = {}
    for bound in (1e-3, 1e6, None):
        algorithm = policy_gradient.make(A2C(**SMALL, trust_region=bound), CHOICE, 1000)
        state, other = (made_up(algorithm.init, seed) for seed in (0, 1))
        rollout = act_out(state, (8, 3), seed=2)
        if bound is not None:
            state = state._replace(adaptive={"average": other.model})
        after, _ = jax.jit(algorithm.update)(state, rollout)
        bias[bound] = np.asarray(after.model.policy.network.layers.biases[1])
    np.testing.assert_allclose(bias[1e6], bias[None], atol=1e-6)
    assert np.abs(bias[1e-3] - bias[None]).max() > 1e-5


def test_the_learning_rate_goes_with_the_environment_steps(made_up, act_out):
    algorithm = policy_gradient.make(A2C(**SMALL, learning_rate="linear:0.1:0"), CHOICE, 1000)
    state = made_up(algorithm.init)
    rollout, update = act_out(state, (8, 3), seed=2), jax.jit(algorithm.update)
    for iteration in (0, 10):
        _, metrics = update(state._replace(iteration=np.int32(iteration)), rollout)
        assert metrics["schedule/learning_rate"] == pytest.approx(0.1 * (1 - 24 * iteration / 1000))


def test_the_average_network_takes_in_a_hundredth_of_the_new_one(made_up, act_out):
    state, after, _, _ = updated(made_up, act_out, A2C(**SMALL, learning_rate=1.0, trust_region=1.0))
    averages = state.adaptive["average"], after.model, after.adaptive["average"]
    for old, new, average in zip(*map(jax.tree.leaves, averages), strict=True):
        assert np.abs(new - old).max() > 0.1
        np.testing.assert_allclose(average, 0.99 * old + 0.01 * new, rtol=1e-4, atol=1e-5)


WRONG = {
    "learning_rate": [0.0, -1e-3, "linear:1e-3:-1e-3", None],
    "value_learning_rate": [0.0, -1e-3, "linear:1e-3:-1e-3"],
    "adam_epsilon": [0.0, -1e-5, None],
    "vf_coef": [-0.5, "linear:0.5:-0.5", None],
    "ent_coef": [np.nan, "much", None],
    "max_grad_norm": [0.0, -0.5, "none"],
    "target_kl": [0.0, -0.01, "linear:0.01:-0.01"],
    "baseline": [1, "no", None],
    "trust_region": [0.0, -1.0, "wide"],
}


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, values in WRONG.items() for v in values], ids=lambda each: repr(each)
)
def test_a_wrong_setting_is_refused_by_name(field, value):
    with pytest.raises(ConfigError) as error:
        PolicyGradient(**{field: value})
    assert error.value.field == field


def test_a_trust_region_is_refused_where_the_log_std_follows_a_schedule():
    with pytest.raises(ConfigError, match="a scheduled log_std has none"):
        PolicyGradient(trust_region=1.0, log_std="linear:0:-1")
    assert PolicyGradient(trust_region=1.0, log_std="state").trust_region == 1.0


def test_without_a_baseline_no_setting_of_the_value_function_is_read():
    names = {"value_target", "vf_coef", "value_learning_rate"}
    assert names <= set(PolicyGradient(baseline=False, gae_lambda=1.0).unread())
    assert not names & set(PolicyGradient().unread())


def test_the_learning_rate_s_factor_moves_with_the_kl_of_the_update(made_up, act_out):
    for target_kl, factor in ((1e-6, 1 / 1.5), (1e3, 1.5)):
        state, after, metrics, _ = updated(made_up, act_out, A2C(**SMALL, target_kl=target_kl, learning_rate=0.1))
        before = state.adaptive["learning_rate_scale"]
        assert after.adaptive["learning_rate_scale"] == pytest.approx(factor * before)
        assert metrics["schedule/learning_rate"] == pytest.approx(0.1 * before)


def test_one_step_algorithms_refuse_what_needs_minibatches():
    with pytest.raises(ConfigError, match="there are no minibatches"):
        PolicyGradient(normalize_advantage="minibatch")


def test_a2c_and_reinforce_are_one_update_with_other_defaults():
    shared = {"adam_epsilon": 1e-5, "vf_coef": "0.5", "max_grad_norm": 0.5, "gae_lambda": "1.0"}
    expected = {
        A2C: {"num_envs": 16, "horizon": 5, "learning_rate": "0.0007", "ent_coef": "0.01"},
        REINFORCE: {"num_envs": 8, "horizon": 256, "learning_rate": "linear:0.003:0.0", "ent_coef": "0.0"},
    }
    for kind, own in expected.items():
        assert to_json(kind(), kind).items() >= (shared | own).items()
        assert kind().gradient_steps_per_iteration == 1


@pytest.mark.parametrize("rate", ["0.5", "linear:0.5:0.0"])
def test_the_value_function_s_own_step_size_is_any_above_zero(rate):
    assert str(A2C(value_learning_rate=rate).value_learning_rate) == rate


def test_the_learning_rate_s_factor_begins_at_one():
    algorithm = policy_gradient.make(A2C(**SMALL, target_kl=0.01), CHOICE, 1000)
    assert algorithm.init(jax.random.key(0)).adaptive["learning_rate_scale"] == 1


def test_a_short_direction_along_the_kl_is_divided_by_its_own_length():
    new = DiagonalGaussian(jnp.float32([[[0.5]]]), jnp.float32([[[0.0]]]))
    average = DiagonalGaussian(jnp.float32([[[0.0]]]), jnp.float32([[[0.0]]]))
    batch = rows(np.float32([[4.0]]), np.float32([[[1.5]]]))
    # As above with m = 0.5: g = A ((a - m), (a - m)^2 - 1) = (4, 0), k = (m, -m^2) = (0.5, -0.25), k.g = 2 and
    # |k|^2 = 0.3125; bound 1: g - (2 - 1) / 0.3125 k = (4 - 1.6, 0.8).
    held = jax.grad(lambda d: trust_region_gain(d, average, batch, 1.0).sum())(new)
    np.testing.assert_allclose(held.mean.ravel(), [2.4], atol=1e-5)
    np.testing.assert_allclose(held.log_std.ravel(), [0.8], atol=1e-5)


def test_an_optax_chain_that_holds_its_learning_rate_is_refused():
    import optax

    for uphill in (optax.scale_by_rms(), optax.scale(0.01)):
        make_direction(1e-5, None, False, uphill)
    for other in (optax.adam(1e-3), optax.set_to_zero()):
        with pytest.raises(ConfigError, match="Leave the learning rate out"):
            make_direction(1e-5, None, False, other)
