"""TRPO: Fisher products, conjugate gradient, and what the line search promises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

import oracles
from inchworm import spaces
from inchworm.algorithms import trpo
from inchworm.algorithms.opening import opening_pass
from inchworm.algorithms.trpo import NPG, TRPO, fisher_vector_product, surrogate_and_kl, trust_region_step
from inchworm.errors import ConfigError
from inchworm.models import observations
from inchworm.models.actor_critic import PolicyNetwork, make_model
from inchworm.models.heads import CategoricalHead
from inchworm.models.settings import ModelSettings
from inchworm.numerics.tree import broadcast_rows
from inchworm.rl.diagnostics import weighted_mean
from inchworm.rl.distributions import Categorical
from inchworm.spaces import Box, Dict, Discrete, EnvSpec, MultiBinary, MultiDiscrete
from inchworm.types import Batch, Rollout

T, N = 4, 3
opened = jax.jit(opening_pass, static_argnums=3)
OBS = Box((2,), "float32", -1.0, 1.0)
BOX = Box((2,), "float32", -1.0, 1.0)
HYBRID = Dict((("choice", Discrete(3)), ("push", BOX)))
TINY = {"hidden_sizes": (3,), "recurrent_size": 3}
CASES = {
    "categorical": (Discrete(3), {}),
    "masked categorical": (Discrete(3), {"masked": True}),
    "multi-categorical": (MultiDiscrete((2, 3), (2,), (0, 0), "int64"), {}),
    "masked bernoulli": (MultiBinary((2,)), {"masked": True}),
    "bernoulli": (MultiBinary((2,)), {}),
    "gaussian": (BOX, {}),
    "gaussian of the state": (BOX, {"log_std": "state"}),
    "tanh-gaussian": (BOX, {"action_distribution": "tanh_gaussian"}),
    "beta": (BOX, {"action_distribution": "beta"}),
    "product": (HYBRID, {}),
    "masked categorical with gru": (Discrete(3), {"masked": True, "recurrent": "gru"}),
    "gaussian with lstm": (BOX, {"recurrent": "lstm"}),
}


def problem(case, seed=0):
    """A policy with random parameters of deviation 1/2, and a batch of T N rows of which one is invalid."""
    action_space, extra = CASES[case]
    settings = dict(extra)
    masked = settings.pop("masked", False)
    model_settings = ModelSettings(**TINY | settings)
    generator = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: make_model(key, EnvSpec(OBS, action_space), model_settings), jax.random.key(0))
    model = jax.tree.map(lambda leaf: np.float32(generator.normal(0.0, 0.5, leaf.shape)), shapes)
    mask = None
    if masked:
        mask = generator.random((T, N, spaces.num_mask_columns(action_space))) < 0.5
        start = 0
        for group in spaces.mask_groups(action_space):
            mask[..., start] = True
            start += group
    weight = np.ones((T, N), np.float32)
    weight[1, 1] = 0.0
    carry = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.3, np.float32), model.initial_carry(N))
    first = np.zeros((T, N), bool)
    first[2, 0] = True
    batch = Batch(
        obs=np.float32(generator.normal(size=(T, N, 2))),
        first=first,
        action=None,
        mask=mask,
        carry=carry,
        log_prob=np.zeros((T, N), np.float32),
        advantage=np.float32(generator.normal(size=(T, N))),
        value=np.zeros((T, N), np.float32),
        returns=np.zeros((T, N), np.float32),
        weight=weight,
    )
    return jax.tree.map(jnp.asarray, (model.policy, batch))


def distribution_of(policy, batch):
    carry = None if batch.carry is None else batch.carry[0]
    return policy.unroll((None,), batch.obs, batch.first, batch.mask, carry)[0]


def with_actions(policy, batch, key):
    """The batch with actions that the policy draws, their log-probabilities, and the old distributions."""
    old = distribution_of(policy, batch)
    action = old.sample_from(policy.head.draw_noise(key, (T, N)))
    return batch._replace(action=action, log_prob=old.log_prob(action), old=broadcast_rows(old, (T, N)))


@pytest.mark.parametrize("case", CASES)
def test_fisher_products_are_those_of_the_dense_hessian_of_the_mean_kl(case):
    policy, batch = problem(case)
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, policy))

    @jax.jit
    def both(flat, vector):
        old = distribution_of(unravel(flat), batch)

        def mean_kl(new):
            return weighted_mean(old.kl(distribution_of(unravel(new), batch)), batch.weight)

        product = fisher_vector_product(unravel(flat), lambda p: distribution_of(p, batch), batch.weight)
        return jax.jacrev(jax.grad(mean_kl))(flat) @ vector, ravel_pytree(product(unravel(vector)))[0]

    vector = jnp.asarray(np.random.default_rng(1).normal(size=flat.shape), jnp.float32)
    dense, product = both(flat, vector)
    assert np.abs(dense).max() > 1e-3
    np.testing.assert_allclose(product, dense, atol=2e-5 * np.abs(dense).max() + 1e-6)


def test_conjugate_gradient_solves_the_damped_system():
    policy, batch = problem("gaussian")
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, policy))

    @jax.jit
    def solve(gradient):
        product = fisher_vector_product(policy, lambda p: distribution_of(p, batch), batch.weight)

        def damped(vector):
            return ravel_pytree(product(unravel(vector)))[0] + 0.1 * vector

        return cg(damped, gradient, tol=1e-10, maxiter=100)[0], jax.vmap(damped)(jnp.eye(len(gradient)))

    gradient = jnp.asarray(np.random.default_rng(2).normal(size=flat.shape), jnp.float32)
    solution, matrix = solve(gradient)
    expected = np.linalg.solve(np.asarray(matrix, np.float64), np.asarray(gradient, np.float64))
    np.testing.assert_allclose(solution, expected, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-5)
    assert (np.linalg.eigvalsh(matrix) > 0.09).all()


def take_step(policy, batch, config, max_kl=0.01):
    return trust_region_step(
        policy,
        lambda p: surrogate_and_kl(distribution_of(p, batch), batch),
        fisher_vector_product(policy, lambda p: distribution_of(p, batch), batch.weight),
        jnp.float32(max_kl),
        config,
    )


@pytest.mark.parametrize("case", ["categorical", "gaussian"])
def test_on_500_random_problems_an_accepted_step_keeps_the_bound_and_improves(case):
    policy, batch = problem(case)
    config = TRPO()

    generator = np.random.default_rng(3)
    # From flat policies to ones that are nearly sure of themselves.
    scale = np.float32(np.exp(generator.uniform(-2.0, 1.5, 500)))
    starts = jax.tree.map(
        lambda leaf: np.float32(generator.normal(size=(500, *leaf.shape))) * scale.reshape(-1, *[1] * leaf.ndim), policy
    )

    def one(start, key):
        action_key, advantage_key = jax.random.split(key)
        rows = with_actions(start, batch, action_key)
        rows = rows._replace(advantage=10.0 * jax.random.normal(advantage_key, (T, N)))
        step = take_step(start, rows, config)
        before, _ = surrogate_and_kl(distribution_of(start, rows), rows)
        after, kl = surrogate_and_kl(distribution_of(step.search.point, rows), rows)
        return step.search.accepted, step.search.tries, before, after, kl, step.search.point

    *found, points = jax.jit(jax.vmap(one))(starts, jax.random.split(jax.random.key(0), 500))
    accepted, tries, before, after, kl = map(np.asarray, found)
    same = np.all(
        [
            (np.asarray(new) == old).reshape(500, -1).all(axis=1)
            for old, new in zip(jax.tree.leaves(starts), jax.tree.leaves(points), strict=True)
        ],
        axis=0,
    )
    assert accepted.mean() > 0.9
    assert (tries[accepted] > 1).any(), "no problem made the line search shorten a step"
    assert (kl[accepted] <= 0.01 * (1 + 1e-4)).all()
    assert (after[accepted] > before[accepted]).all()
    assert same[~accepted].all()
    assert not same[accepted].any()


def test_a_step_that_no_length_makes_acceptable_leaves_every_bit_in_place():
    policy, batch = problem("gaussian")
    batch = with_actions(policy, batch, jax.random.key(0))

    @jax.jit
    def step(policy):
        # A KL that is beyond any bound wherever the policy moves.
        def evaluate(candidate):
            gain, kl = surrogate_and_kl(distribution_of(candidate, batch), batch)
            return gain, jnp.where(kl > 0, 1.0, kl)

        product = fisher_vector_product(policy, lambda p: distribution_of(p, batch), batch.weight)
        return trust_region_step(policy, evaluate, product, jnp.float32(0.01), TRPO())

    taken = step(policy)
    assert not taken.search.accepted
    assert taken.search.tries == 10
    for old, new in zip(jax.tree.leaves(policy), jax.tree.leaves(taken.search.point), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("advantage", [0.0, np.nan, np.inf], ids=["zero gradient", "NaN", "infinity"])
@pytest.mark.parametrize("line_search", [True, False])
def test_a_useless_gradient_is_a_rejected_step_and_never_nan(advantage, line_search):
    policy, batch = problem("categorical")
    batch = with_actions(policy, batch, jax.random.key(0))._replace(advantage=np.full((T, N), advantage, np.float32))
    taken = jax.jit(lambda p: take_step(p, batch, TRPO(line_search=line_search)))(policy)
    assert not taken.search.accepted
    for old, new in zip(jax.tree.leaves(policy), jax.tree.leaves(taken.search.point), strict=True):
        np.testing.assert_array_equal(old, new)


def test_without_line_search_the_step_has_the_length_of_the_quadratic_model():
    policy, batch = problem("gaussian")
    batch = with_actions(policy, batch, jax.random.key(0))

    @jax.jit
    def step_and_its_length(policy):
        taken = take_step(policy, batch, TRPO(line_search=False, cg_damping=0.1), 0.01)
        step = jax.tree.map(lambda new, old: new - old, taken.search.point, policy)
        product = fisher_vector_product(policy, lambda p: distribution_of(p, batch), batch.weight)
        flat, curved = ravel_pytree(step)[0], ravel_pytree(product(step))[0]
        return taken.search.accepted, 0.5 * flat @ (curved + 0.1 * flat)

    accepted, length = step_and_its_length(policy)
    assert accepted
    # 1/2 s^T (F + 0.1 I) s = delta.
    assert length == pytest.approx(0.01, rel=1e-3)


def test_the_surrogate_and_the_kl_from_the_old_policy_are_means_over_valid_rows():
    old, new = np.random.default_rng(0).normal(size=(2, T, N, 3))
    p, q = oracles.softmax(old), oracles.softmax(new)
    batch = problem("categorical")[1]
    advantage, action = np.asarray(batch.advantage), np.arange(T * N, dtype=np.int32).reshape(T, N) % 3
    chosen = (*np.indices((T, N)), action)
    batch = batch._replace(
        action=action, log_prob=np.float32(np.log(p[chosen])), old=Categorical(jnp.asarray(old, jnp.float32))
    )
    gain, kl = surrogate_and_kl(Categorical(jnp.asarray(new, jnp.float32)), batch)
    valid = np.asarray(batch.weight) > 0
    assert gain == pytest.approx((q[chosen] / p[chosen] * advantage)[valid].mean(), rel=1e-5)
    assert kl == pytest.approx((p * np.log(p / q)).sum(axis=-1)[valid].mean(), rel=1e-4)


def step_from_zero(gain, kl, matrix, config, max_kl):
    """The step of a policy that is nothing but a vector x, which starts at 0 and whose Fisher matrix is given."""
    matrix = jnp.float32(matrix)
    step = trust_region_step(
        PolicyNetwork(jnp.zeros(len(matrix)), CategoricalHead(2)),  # type: ignore[arg-type]
        lambda policy: (gain(policy.network), kl(policy.network)),
        lambda policy: dataclasses.replace(policy, network=matrix @ policy.network),
        jnp.float32(max_kl),
        config,
    )
    return step, step.search.point.network


def one_dimensional_step(gain, kl, config, max_kl=0.5, curvature=1.0):
    """With a full length of sqrt(2 max_kl / curvature)."""
    return step_from_zero(lambda x: gain(x[0]), lambda x: kl(x[0]), [[curvature]], config, max_kl)


def test_a_step_is_shortened_until_the_surrogate_is_better_than_before_even_where_the_kl_allows_more():
    config = TRPO(cg_damping=0.0, shrink=0.5)
    # 7 + x - 10 x^2 is above 7 between 0 and 1/10 only: 1, 1/2, 1/4 and 1/8 are too long.
    step, point = one_dimensional_step(lambda x: 7.0 + x - 10.0 * x**2, lambda x: 0.0 * x, config)
    assert (step.search.accepted, step.search.tries, point) == (True, 5, 1 / 16)
    assert (step.surrogate_before, step.gradient_norm, step.expected_improvement) == (7, 1, 1)
    # One that stays as good as it was is not taken.
    flat, point = one_dimensional_step(lambda x: x - jax.lax.stop_gradient(x), lambda x: 0.0 * x, config)
    assert (flat.search.accepted, flat.search.tries, point) == (False, 10, 0)


def test_a_step_is_shortened_until_the_kl_is_no_more_than_its_bound():
    config = TRPO(cg_damping=0.0, shrink=0.5)
    step, point = one_dimensional_step(lambda x: x, lambda x: 4.0 * x**2, config, max_kl=0.25, curvature=0.5)
    # The full step is sqrt(2 / 4 / (1 / 2)) = 1, and 4 x^2 = 1/4 at x = 1/4.
    assert (step.search.accepted, step.search.tries, point) == (True, 3, 1 / 4)


def test_damping_is_added_to_the_curvature():
    _, point = one_dimensional_step(lambda x: x, lambda x: 0.0 * x, TRPO(cg_damping=1.5))
    assert point == pytest.approx(np.sqrt(2 * 0.5 / (1.0 + 1.5)))


@pytest.mark.parametrize("cg_iters", [1, 2, 3])
def test_conjugate_gradient_takes_as_many_iterations_as_it_is_given(cg_iters):
    matrix, gradient = np.diag([1.0, 4.0, 9.0]), np.array([1.0, 1.0, 1.0])
    # After k iterations x is the best in the span of g, F g, ..., F^(k-1) g.
    basis = np.stack([np.linalg.matrix_power(matrix, k) @ gradient for k in range(cg_iters)], axis=1)
    x = basis @ np.linalg.solve(basis.T @ matrix @ basis, basis.T @ gradient)
    config = TRPO(cg_damping=0.0, cg_iters=cg_iters, line_search=False)
    _, point = step_from_zero(lambda x: x @ jnp.float32(gradient), lambda x: 0.0 * x[0], matrix, config, 0.5)
    np.testing.assert_allclose(point, x / np.sqrt(x @ matrix @ x), rtol=1e-4)


def test_fisher_products_take_other_rows_each_time_each_at_most_once_and_at_least_one():
    rows, keys = Batch(*[None] * 9, weight=jnp.arange(40)), jax.random.split(jax.random.key(0), 50)
    draws = [np.asarray(trpo._subsample(rows, key, 0.25).weight) for key in keys]
    assert {len(set(draw)) for draw in draws} == {10}
    # Each of 40 rows is in a quarter of 50 draws, give or take four standard deviations of 3.
    counts = np.bincount(np.concatenate(draws), minlength=40)
    assert counts.min() > 0
    assert counts.max() < 12.5 + 4 * 3.1
    assert len(trpo._subsample(rows, keys[0], 0.001).weight) == 1
    np.testing.assert_array_equal(trpo._subsample(rows, keys[0], 1.0).weight, np.arange(40))


def test_the_value_function_is_fitted_to_the_returns_of_valid_rows(made_up, act_out):
    config = TRPO(num_envs=3, horizon=8, hidden_sizes=(4,), minibatch_size=24, num_value_epochs=1, adam_epsilon=0.1)
    algorithm = trpo.make(config, EnvSpec(Box((3,), "float32", -1.0, 1.0), BOX), 1000)
    state = made_up(algorithm.init)
    rollout = act_out(state, (8, 3), seed=2, invalid=0.2)
    after, metrics = jax.jit(algorithm.update)(state, rollout)

    layers, valid = state.model.value.layers, rollout.valid.ravel()
    rows, next_rows = (np.clip(obs, -5, 5).reshape(24, 3) for obs in (rollout.obs, rollout.next_obs))
    value, next_value = (oracles.mlp(layers.weights, layers.biases, each)[:, 0] for each in (rows, next_rows))
    flags = (rollout.terminated, rollout.truncated, rollout.valid)
    values = (value.reshape(8, 3), next_value.reshape(8, 3))
    returns = oracles.generalized_advantage(rollout.reward, *values, *flags, 0.99, 0.95).ravel() + value

    def loss(last_bias):
        predicted = oracles.mlp(layers.weights, [layers.biases[0], last_bias], rows)[:, 0]
        return float(np.mean((predicted - returns)[valid] ** 2))

    assert metrics["loss/value"] == pytest.approx(loss(layers.biases[1]), rel=1e-4)
    (slope,) = oracles.finite_difference_gradient(loss, layers.biases[1])
    # The first step of Adam is g / (|g| + epsilon).
    moved = after.model.value.layers.biases[1] - layers.biases[1]
    assert moved == pytest.approx(-1e-3 * slope / (abs(slope) + 0.1), rel=1e-3)


@pytest.mark.parametrize(("line_search", "normalize_advantage"), [(True, "batch"), (False, "batch"), (True, "none")])
def test_what_is_reported_of_a_step_is_what_became_of_surrogate_kl_and_entropy(
    made_up, act_out, line_search, normalize_advantage
):
    config = TRPO(
        num_envs=3,
        horizon=8,
        hidden_sizes=(4,),
        minibatch_size=24,
        num_value_epochs=1,
        max_kl=0.5,
        cg_damping=0.01,
        shrink=0.7,
        line_search=line_search,
        normalize_advantage=normalize_advantage,
    )
    algorithm = trpo.make(config, EnvSpec(Box((3,), "float32", -1.0, 1.0), BOX), 1000)
    state = made_up(algorithm.init, seed=7)
    rollout = act_out(state, (8, 3), seed=9, invalid=0.2)
    after, metrics = jax.jit(algorithm.update)(state, rollout)
    opening = opened(state.model, observations.freeze(state.obs_stats), rollout, config, config.at(0.0, 1000))
    valid, advantage = rollout.valid.ravel(), np.ravel(opening.batch.advantage)
    rows, action = np.clip(rollout.obs, -5, 5).reshape(24, 3), rollout.action.reshape(24, 2)

    def policy_at(share):
        """Means and deviations of the policy at a share of the way from old to new."""
        old, new = (jax.tree.map(np.float64, each.model.policy) for each in (state, after))
        policy = jax.tree.map(lambda a, b: a + share * (b - a), old, new)
        layers = policy.network.layers
        return oracles.mlp(layers.weights, layers.biases, rows), np.exp(policy.head.log_std)

    def gain(share):
        logs = [oracles.normal_log_density(action, *policy_at(each)).sum(axis=1) for each in (share, 0.0)]
        return float((np.exp(logs[0] - logs[1]) * advantage)[valid].mean())

    (mean, std), (new_mean, new_std) = policy_at(0.0), policy_at(1.0)
    kl = np.log(new_std / std) + (std**2 + (mean - new_mean) ** 2) / (2 * new_std**2) - 0.5
    assert metrics["trpo/accepted"] == 1
    assert metrics["policy/kl"] == pytest.approx(kl.sum(axis=1)[valid].mean(), rel=1e-3)
    assert metrics["policy/entropy"] == pytest.approx(np.log(new_std * np.sqrt(2 * np.pi * np.e)).sum(), rel=1e-4)
    assert metrics["loss/policy"] == pytest.approx(-gain(1.0), rel=1e-3)
    assert metrics["trpo/improvement"] == pytest.approx(gain(1.0) - gain(0.0), rel=1e-3, abs=1e-5)
    # What is expected is of the full step, of which so much was taken.
    taken = 0.7 ** float(metrics["trpo/backtracks"])
    if normalize_advantage == "batch":
        assert metrics["trpo/backtracks"] == (4 if line_search else 0)
    else:
        assert abs(gain(0.0)) > 0.1
    slope = (gain(1e-4) - gain(-1e-4)) / 2e-4
    assert metrics["trpo/expected_improvement"] == pytest.approx(slope / taken, rel=1e-3)
    assert metrics["schedule/max_kl"] == 0.5


def test_the_bound_goes_with_the_environment_steps(made_up, act_out):
    config = TRPO(
        num_envs=3, horizon=8, hidden_sizes=(4,), minibatch_size=24, num_value_epochs=1, max_kl="linear:0.1:0"
    )
    algorithm = trpo.make(config, EnvSpec(Box((3,), "float32", -1.0, 1.0), BOX), 1000)
    state = made_up(algorithm.init)
    rollout, update = act_out(state, (8, 3), seed=2), jax.jit(algorithm.update)
    for iteration in (0, 10):
        _, metrics = update(state._replace(iteration=np.int32(iteration)), rollout)
        bound = 0.1 * (1 - 24 * iteration / 1000)
        assert metrics["schedule/max_kl"] == pytest.approx(bound)
        assert 0 < metrics["policy/kl"] <= bound * (1 + 1e-4)


def test_the_value_function_is_fitted_from_the_memory_it_began_the_rollout_with(made_up, act_out):
    sizes = {"num_envs": 3, "horizon": 8, "hidden_sizes": (4,), "minibatch_size": 24, "num_value_epochs": 1}
    plain, config = (TRPO(**sizes, normalize_advantage="none", recurrent=core) for core in ("none", "gru"))
    spec = EnvSpec(Box((3,), "float32", -1.0, 1.0), Discrete(3))
    algorithm = trpo.make(config, spec, 1000)
    state, generator = made_up(algorithm.init), np.random.default_rng(0)
    carry = jax.tree.map(lambda leaf: np.float32(generator.normal(size=leaf.shape)), state.model.initial_carry(3))
    rollout = act_out(made_up(trpo.make(plain, spec, 1000).init), (8, 3), seed=2, invalid=0.2)._replace(carry=carry)
    _, metrics = jax.jit(algorithm.update)(state, rollout)
    opening = opened(state.model, observations.freeze(state.obs_stats), rollout, config, config.at(0.0, 1000))
    # Before the first step what the value function lacks to the returns is the advantage.
    expected = np.mean(np.asarray(opening.batch.advantage)[rollout.valid] ** 2)
    assert metrics["loss/value"] == pytest.approx(expected, rel=1e-4)


WRONG = {
    "max_kl": [0.0, -0.01, "linear:0.01:-0.01", np.nan, None],
    "cg_iters": [0, -1, 1.5, None],
    "cg_damping": [-0.1, np.nan, "small", None],
    "fisher_fraction": [0.0, -0.1, 1.01, None],
    "line_search": [1, "yes", None],
    "max_backtracks": [0, 2.5, None],
    "shrink": [0.0, 1.01, -0.5, None],
    "value_learning_rate": [0.0, -1e-3, "linear:1e-3:-1e-3", None],
    "num_value_epochs": [0, 1.5, None],
    "minibatch_size": [0, 1, 100, None],
    "adam_epsilon": [0.0, -1e-5, None],
    "normalize_advantage": ["minibatch"],
}


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, values in WRONG.items() for v in values], ids=lambda each: repr(each)
)
def test_a_wrong_setting_is_refused_by_name(field, value):
    with pytest.raises(ConfigError) as error:
        TRPO(**{field: value})
    assert error.value.field == field


def test_settings_at_the_ends_of_their_ranges_are_taken():
    ends = {"cg_iters": 1, "max_backtracks": 1, "num_value_epochs": 1, "minibatch_size": 2}
    ends |= {"cg_damping": 0.0, "fisher_fraction": 1.0, "shrink": 1.0, "max_kl": "linear:0.01:0.0"}
    for name, value in ends.items():
        assert str(getattr(TRPO(**{name: value}), name)) == str(value)


def test_the_natural_policy_gradient_takes_the_full_step_and_reads_no_setting_of_a_search():
    assert NPG().line_search is False
    assert {"max_backtracks", "shrink"} <= set(NPG().unread())
    assert not {"max_backtracks", "shrink"} & set(TRPO().unread())
    with pytest.raises(ConfigError, match="line_search = True: would make TRPO of the natural policy gradient"):
        NPG(line_search=True)


def test_the_defaults_are_the_documented_ones():
    expected = {"cg_iters": 15, "num_value_epochs": 10, "adam_epsilon": 1e-5, "line_search": True}
    assert {name: getattr(TRPO(), name) for name in expected} == expected


def test_where_no_step_is_taken_nothing_is_gained_and_the_policy_with_its_memory_is_the_old_one(made_up, act_out):
    sizes = {"num_envs": 3, "horizon": 8, "hidden_sizes": (4,), "minibatch_size": 24, "num_value_epochs": 1}
    # A constant reward and a value of zero, without a look ahead: all advantages are alike, and standardised zero.
    plain, config = (TRPO(**sizes, gamma=0.0, recurrent=core) for core in ("none", "gru"))
    spec = EnvSpec(Box((3,), "float32", -1.0, 1.0), Discrete(3))
    algorithm = trpo.make(config, spec, 1000)
    state, generator = made_up(algorithm.init), np.random.default_rng(0)
    state = state._replace(
        model=dataclasses.replace(state.model, value=jax.tree.map(np.zeros_like, state.model.value)), obs_stats=(None,)
    )
    carry = jax.tree.map(lambda leaf: np.float32(generator.normal(size=leaf.shape)), state.model.initial_carry(3))
    rollout = act_out(made_up(trpo.make(plain, spec, 1000).init), (8, 3), seed=2)
    rollout = rollout._replace(carry=carry, reward=np.ones((8, 3), np.float32))
    after, metrics = jax.jit(algorithm.update)(state, rollout)
    assert metrics["trpo/accepted"] == 0
    assert metrics["trpo/improvement"] == 0
    assert metrics["policy/kl"] == pytest.approx(0.0, abs=1e-7)
    for ours, theirs in zip(*map(jax.tree.leaves, (after.model.policy, state.model.policy)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_shared_trunk_is_refused():
    with pytest.raises(ConfigError, match="shared_trunk = True: would let the value function's steps move the policy"):
        TRPO(shared_trunk=True)


def test_the_line_search_judges_by_all_rows_where_fisher_products_take_some():
    config = TRPO(num_envs=2, horizon=32, hidden_sizes=(4,), minibatch_size=32, num_value_epochs=1, fisher_fraction=0.1)
    spec = EnvSpec(OBS, Discrete(3))
    algorithm = trpo.make(config, spec, 1000)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    generator = np.random.default_rng(0)
    obs = np.float32(generator.normal(size=(33, 2, 2)))
    action = np.int32(generator.integers(3, size=(32, 2)))
    normalizers = (None,)
    old = state.model.unroll(normalizers, obs[:-1]).distribution
    state = state._replace(obs_stats=(None,))
    rollout = Rollout(
        obs=obs[:-1],
        first=np.zeros((32, 2), bool),
        action=action,
        mask=None,
        log_prob=old.log_prob(action),
        reward=np.float32(generator.normal(size=(32, 2))),
        terminated=np.zeros((32, 2), bool),
        truncated=np.zeros((32, 2), bool),
        next_obs=obs[1:],
        carry=None,
        valid=np.ones((32, 2), bool),
    )
    update = jax.jit(algorithm.update)
    for _ in range(3):
        _, metrics = update(state, rollout)
        assert metrics["policy/kl"] <= 0.01 * (1 + 1e-4)
        assert metrics["trpo/accepted"] == 1.0
        state = state._replace(iteration=state.iteration + 1)
