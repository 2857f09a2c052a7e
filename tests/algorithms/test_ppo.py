"""PPO's loss and update against a NumPy oracle and finite differences, and its settings."""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from inchworm import spaces
from inchworm.algorithms import ppo
from inchworm.algorithms.ppo import PPO
from inchworm.errors import ConfigError, UnsupportedSpaceError
from inchworm.models import observations
from inchworm.models.actor_critic import make_model
from inchworm.models.observations import Normalizer
from inchworm.models.settings import ModelSettings, to_json
from inchworm.numerics.tree import broadcast_rows
from inchworm.rl.distributions import Categorical, DiagonalGaussian
from inchworm.rl.schedules import Schedule
from inchworm.spaces import EnvSpec
from inchworm.types import Batch

OBSERVATION = spaces.Box((3,), "float32", -1.0, 1.0)
CHOICE = EnvSpec(OBSERVATION, spaces.Discrete(4))
VECTOR = EnvSpec(OBSERVATION, spaces.Box((2,), "float32", -1.0, 1.0))
NORMALIZERS = (Normalizer(np.float32([0.3, -0.1, 0.5]), np.float32([0.5, 2.0, 0.6])),)

loss_and_gradient = jax.jit(jax.value_and_grad(ppo._loss, has_aux=True), static_argnums=3)


def doubles(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def oracle_parameters(model: Any) -> dict[str, Any]:
    networks = {"policy": model.policy.network.layers, "value": model.value.layers}
    parameters = {name: (layers.weights, layers.biases) for name, layers in networks.items()}
    if hasattr(model.head, "log_std"):
        parameters["log_std"] = model.head.log_std
    return parameters


def oracle_gradient(model: Any, batch: dict[str, np.ndarray], **settings: Any) -> Any:
    """Finite differences of the oracle's loss by every parameter."""
    leaves, structure = jax.tree.flatten(doubles(model))

    def loss_with(index: int, leaf: np.ndarray) -> float:
        changed = jax.tree.unflatten(structure, [*leaves[:index], leaf, *leaves[index + 1 :]])
        return oracles.ppo_loss(oracle_parameters(changed), batch, **settings)

    gradients = [
        oracles.finite_difference_gradient(lambda x, i=i: loss_with(i, x), leaf) for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, gradients)


def assert_trees_close(found: Any, expected: Any, atol: float) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        twin = dict(jax.tree_util.tree_leaves_with_path(expected))[path]
        np.testing.assert_allclose(leaf, twin, atol=atol, err_msg=jax.tree_util.keystr(path))


# Ratio and advantage of each row: every case of the clip, away from its kinks, at the paper's range and at 0.1.
ROWS = [
    (1.5, 2.0),
    (1.05, 1.0),
    (0.94, 0.5),
    (0.5, 1.5),
    (1.4, -1.0),
    (1.06, -2.0),
    (0.93, -0.7),
    (0.6, -1.2),
    (3.0, 9.0),
]
WEIGHT = np.float32([1, 1, 1, 1, 1, 1, 1, 1, 0])
# New value minus old value, and target minus old value: moved within a range of 0.2, past it towards, and past it away.
VALUE_MOVES = [
    (0.1, 1.0),
    (0.5, 1.0),
    (0.5, -1.0),
    (-0.5, 1.0),
    (-0.5, -1.0),
    (0.1, -1.0),
    (-0.1, 0.3),
    (0.4, 0.1),
    (2.0, 9.0),
]


@pytest.fixture(scope="module", params=[CHOICE, VECTOR], ids=["choice", "vector"])
def hand_made(request, made_up):
    """A model with sizeable parameters, and a batch around it with every case of the clips."""
    model = made_up(lambda key: make_model(key, request.param, ModelSettings(hidden_sizes=(4,))))
    generator = np.random.default_rng(0)
    obs = np.float32(generator.normal(size=(len(ROWS), 3)))
    features = observations.encode(OBSERVATION, NORMALIZERS, obs)
    distribution, value, _ = observations.to_numpy(model).unroll(NORMALIZERS, obs)
    size = 4 if request.param is CHOICE else 2
    action = distribution.sample_from(np.float32(generator.gumbel(size=(len(ROWS), size))))
    ratio, advantage = np.float32(ROWS).T
    moved, target = np.float32(VALUE_MOVES).T
    batch = Batch(
        obs=obs,
        first=np.zeros(len(ROWS), bool),
        action=action.astype(np.int32) if action.dtype.kind == "i" else action,
        mask=None,
        carry=None,
        log_prob=distribution.log_prob(action) - np.log(ratio),
        advantage=advantage,
        value=value - moved,
        returns=value - moved + target,
        weight=WEIGHT,
    )
    arrays = {name: leaf for name, leaf in (batch._asdict() | {"obs": features}).items() if leaf is not None}
    if request.param is CHOICE:
        old = Categorical(0.5 * distribution.logits)
        return model, batch._replace(old=old), arrays | {"old_outputs": old.logits}
    old = DiagonalGaussian(distribution.mean + np.float32(0.3), distribution.log_std - np.float32(0.2))
    arrays |= {"old_outputs": old.mean, "old_log_std": old.log_std}
    return model, batch._replace(old=broadcast_rows(old, (len(ROWS),))), arrays


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "clipped surrogate": ({}, {"vf_coef": 0.0}),
    "range 0.1": ({}, {"vf_coef": 0.0, "clip_range": 0.1}),
    "value loss alike": ({}, {}),
    "value loss halved": ({}, {"vf_coef": 0.5}),
    "entropy bonus": ({}, {"ent_coef": 0.3}),
    "entropy bonus and value loss": ({}, {"ent_coef": 0.3, "vf_coef": 0.7}),
    "value clipping": ({"clip_range_value": 0.2}, {}),
    "advantages by minibatch": ({"normalize_advantage": "minibatch"}, {"ent_coef": 0.01}),
    "another upper end": ({}, {"clip_range_high": 0.3}),
    "clip in log space": ({"surrogate": "log_clip"}, {}),
    "no clip": ({"surrogate": "none"}, {}),
    "KL penalty": ({"surrogate": "kl"}, {"kl_coef": 0.7}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradient_are_the_oracle_s(hand_made, name):
    model, batch, oracle_batch = hand_made
    static, now = SETTINGS[name]
    now = {"clip_range": 0.2, "vf_coef": 1.0, "ent_coef": 0.0} | now
    config = PPO(**{"normalize_advantage": "none"} | static)
    (loss, _), gradient = loss_and_gradient(model, NORMALIZERS, batch, config, now)
    settings = now | {
        "clip_range_value": config.clip_range_value,
        "normalize": config.normalize_advantage == "minibatch",
        "surrogate": config.surrogate,
    }
    assert loss == pytest.approx(
        oracles.ppo_loss(oracle_parameters(doubles(model)), oracle_batch, **settings), rel=1e-5
    )
    assert_trees_close(gradient, oracle_gradient(model, oracle_batch, **settings), atol=3e-5)


def test_the_loss_s_parts_are_reported_over_the_valid_rows(hand_made):
    model, batch, oracle_batch = hand_made
    now = {"clip_range": 0.2, "vf_coef": 0.5, "ent_coef": 0.3}
    (_, metrics), _ = loss_and_gradient(model, NORMALIZERS, batch, PPO(normalize_advantage="none"), now)
    without = {"clip_range": 0.2, "ent_coef": 0.0}
    parameters = oracle_parameters(doubles(model))
    policy_loss = oracles.ppo_loss(parameters, oracle_batch, vf_coef=0.0, **without)
    assert metrics["loss/policy"] == pytest.approx(policy_loss, rel=1e-5)
    assert metrics["loss/value"] == pytest.approx(
        oracles.ppo_loss(parameters, oracle_batch, vf_coef=1.0, **without) - policy_loss, rel=1e-5
    )
    assert metrics["policy/clip_fraction"] == pytest.approx(4 / 8)


def test_the_clip_fraction_in_log_space_is_of_ratios_outside_of_the_range_s_exponentials(hand_made):
    model, batch, _ = hand_made
    config = PPO(normalize_advantage="none", surrogate="log_clip")
    # exp(-0.6) = 0.549 and exp(0.38) = 1.462: of the first eight ratios 1.5 and 0.5 are outside.
    now = {"clip_range": 0.6, "clip_range_high": 0.38, "vf_coef": 0.5, "ent_coef": 0.0}
    (_, metrics), _ = loss_and_gradient(model, NORMALIZERS, batch, config, now)
    assert metrics["policy/clip_fraction"] == pytest.approx(2 / 8)


def test_a_row_of_weight_zero_changes_nothing(hand_made):
    model, batch, _ = hand_made
    now = {"clip_range": 0.2, "vf_coef": 1.0, "ent_coef": 0.1}
    config = PPO(normalize_advantage="minibatch")
    other = batch._replace(
        advantage=np.where(WEIGHT > 0, batch.advantage, -77), returns=np.where(WEIGHT > 0, batch.returns, 1e4)
    )
    found, expected = (loss_and_gradient(model, NORMALIZERS, each, config, now) for each in (other, batch))
    assert_trees_close(found, expected, atol=0.0)


@pytest.fixture(scope="module")
def one_step(act_out, made_up):
    """PPO whose iteration is one gradient step over the whole batch, and a rollout with rows that are no transition."""
    config = PPO(
        num_envs=3,
        horizon=8,
        num_epochs=1,
        minibatch_size=24,
        hidden_sizes=(4,),
        gamma=0.9,
        gae_lambda=0.8,
        learning_rate="linear:0.05:0",
        # Large, so that the step is a smooth function of the gradient.
        adam_epsilon=0.1,
        max_grad_norm=0.3,
        vf_coef=0.5,
    )
    algorithm = ppo.make(config, VECTOR, TOTAL_STEPS)
    state = made_up(algorithm.init, seed=1)
    rollout = act_out(state, (8, 3), seed=2, invalid=0.2)
    return config, jax.jit(algorithm.update), state, rollout


TOTAL_STEPS = 240


def oracle_batch_of(config: PPO, state: Any, rollout: Any) -> dict[str, np.ndarray]:
    """The whole batch from a rollout, all in NumPy: advantages by double sum, standardised over the batch."""
    # Without statistics yet, normalisation is the clip alone.
    limit = 5.0 if config.normalize_observation else np.inf
    features, next_features = (np.clip(obs, -limit, limit).reshape(24, 3) for obs in (rollout.obs, rollout.next_obs))
    network = state.model.value.layers
    value, next_value = (oracles.mlp(network.weights, network.biases, each)[:, 0] for each in (features, next_features))
    advantage = oracles.generalized_advantage(
        rollout.reward,
        value.reshape(8, 3),
        next_value.reshape(8, 3),
        rollout.terminated,
        rollout.truncated,
        rollout.valid,
        config.gamma.start,
        config.gae_lambda.start,
    ).ravel()
    weight = rollout.valid.ravel().astype(float)
    return {
        "obs": features,
        "action": rollout.action.reshape(24, *rollout.action.shape[2:]),
        "log_prob": rollout.log_prob.ravel(),
        "advantage": oracles.standardize(advantage, weight),
        "value": value,
        "returns": advantage + value,
        "weight": weight,
    }


class Adam:
    """Kingma and Ba (2015), Algorithm 1, over a tree."""

    def __init__(self, model: Any, epsilon: float) -> None:
        self.first = self.second = jax.tree.map(lambda p: 0.0 * p, doubles(model))
        self.epsilon, self.count = epsilon, 0

    def step(self, model: Any, gradient: Any, learning_rate: float) -> Any:
        self.count += 1
        self.first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, self.first, gradient)
        self.second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, self.second, gradient)
        first_share, second_share = 1 - 0.9**self.count, 1 - 0.999**self.count
        return jax.tree.map(
            lambda p, m, v: p - learning_rate * (m / first_share) / (np.sqrt(v / second_share) + self.epsilon),
            doubles(model),
            self.first,
            self.second,
        )


def global_norm(gradient: Any) -> float:
    return math.sqrt(sum(float(np.sum(leaf**2)) for leaf in jax.tree.leaves(gradient)))


def test_one_epoch_of_one_minibatch_is_one_step_whose_gradient_is_clipped_by_its_global_norm(one_step):
    config, update, state, rollout = one_step
    batch = oracle_batch_of(config, state, rollout)
    gradient = oracle_gradient(state.model, batch, clip_range=0.2, vf_coef=0.5, ent_coef=0.0)
    norm = global_norm(gradient)
    assert norm > 2 * config.max_grad_norm
    clipped = jax.tree.map(lambda g: g * config.max_grad_norm / norm, gradient)
    after, metrics = update(state, rollout)
    expected = Adam(state.model, config.adam_epsilon).step(state.model, clipped, 0.05)
    assert_trees_close(after.model, expected, atol=2e-6)
    # What is reported is the norm before the clip.
    assert metrics["loss/gradient_norm"] == pytest.approx(norm, rel=1e-4)


def test_an_update_is_a_step_of_adam_on_the_loss_of_each_minibatch(recorded_updates):
    update = recorded_updates[0]
    settings = {"clip_range": 0.2, "vf_coef": 0.5, "ent_coef": 0.02}
    model, adam, norms = update.before.model, Adam(update.before.model, update.config.adam_epsilon), []
    for minibatch in update.minibatches:
        fields = {name: leaf for name, leaf in minibatch._asdict().items() if leaf is not None}
        gradient = oracle_gradient(model, fields, **settings)
        norms.append(global_norm(gradient))
        model = adam.step(model, gradient, 0.1)
    assert_trees_close(update.after.model, model, atol=2e-5)
    assert update.metrics["loss/gradient_norm"] == pytest.approx(np.mean(norms), rel=1e-4)


def test_the_learning_rate_goes_with_the_environment_steps_and_multiplies_the_direction(one_step):
    _, update, state, rollout = one_step
    steps = {}
    for iteration in (0, 4, 9, 10, 12):
        after, metrics = update(state._replace(iteration=np.int32(iteration)), rollout)
        # 24 steps an iteration out of 240.
        assert metrics["schedule/learning_rate"] == pytest.approx(0.05 * max(1 - iteration / 10, 0), rel=1e-5, abs=1e-9)
        steps[iteration] = jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), after.model, state.model)
    for iteration in (4, 9, 10, 12):
        expected = jax.tree.map(lambda step, i=iteration: max(1 - i / 10, 0) * step, steps[0])
        assert_trees_close(steps[iteration], expected, atol=1e-6)


def adam_count(state: Any) -> int:
    (count,) = {int(leaf) for leaf in jax.tree.leaves(state.opt_state) if np.ndim(leaf) == 0}
    return count


def test_an_iteration_is_k_n_t_over_m_gradient_steps(recorded_updates):
    for done, update in enumerate(recorded_updates):
        assert update.config.gradient_steps_per_iteration == 3 * 24 // 6
        assert len(update.minibatches) == 12
        assert adam_count(update.after) - adam_count(update.before) == 12
        assert adam_count(update.after) == 12 * (done + 1)


def test_every_epoch_takes_every_transition_exactly_once_in_another_order(recorded_updates):
    orders = []
    for update in recorded_updates:
        rows = update.rollout.obs.reshape(24, 3)
        for index in range(3):
            epoch = update.epoch(index)
            order = [int(np.flatnonzero((rows == obs).all(axis=1))[0]) for obs in epoch.obs]
            assert sorted(order) == list(range(24))
            # What belongs to a row stays with it through the shuffle.
            np.testing.assert_array_equal(epoch.log_prob, update.rollout.log_prob.ravel()[order])
            np.testing.assert_array_equal(epoch.action, update.rollout.action.ravel()[order])
            orders.append(tuple(order))
    assert len(set(orders)) == 6
    assert tuple(range(24)) not in orders


def test_advantages_are_standardised_once_over_the_batch(recorded_updates):
    update = recorded_updates[0]
    advantages = update.epoch(0).advantage
    assert advantages.mean() == pytest.approx(0, abs=1e-6)
    assert advantages.std() == pytest.approx(1, rel=1e-5)
    assert all(abs(minibatch.advantage.std() - 1) > 1e-3 for minibatch in update.minibatches)
    batch = oracle_batch_of(update.config, update.before, update.rollout)
    np.testing.assert_allclose(np.sort(advantages), np.sort(batch["advantage"]), atol=1e-5)


def test_reported_kl_and_entropy_compare_the_policies_before_and_after_the_update(recorded_updates):
    update = recorded_updates[0]
    rows = update.rollout.obs.reshape(24, 3)
    old, new = (
        oracles.softmax(oracles.mlp(m.policy.network.layers.weights, m.policy.network.layers.biases, rows))
        for m in (update.before.model, update.after.model)
    )
    kl, reverse = np.sum(old * np.log(old / new), axis=1).mean(), np.sum(new * np.log(new / old), axis=1).mean()
    assert update.metrics["policy/kl"] == pytest.approx(kl, rel=1e-4)
    assert update.metrics["policy/kl"] != pytest.approx(reverse, rel=1e-2)
    assert update.metrics["policy/entropy"] == pytest.approx(-np.sum(new * np.log(new), axis=1).mean(), rel=1e-5)


def test_an_update_touches_only_parameters_and_optimiser(one_step):
    _, update, state, rollout = one_step
    after, _ = update(state, rollout)
    for field in set(state._fields) - {"model", "opt_state"}:
        for ours, theirs in zip(*map(jax.tree.leaves, (getattr(after, field), getattr(state, field))), strict=True):
            assert (ours == theirs).all(), field


def test_with_two_learning_rates_policy_and_value_function_step_by_optimisers_of_their_own(one_step):
    config, _, state, rollout = one_step
    config = dataclasses.replace(config, value_learning_rate=0.02)
    algorithm = ppo.make(config, VECTOR, TOTAL_STEPS)
    shapes = jax.eval_shape(algorithm.init, jax.random.key(0)).opt_state
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    after, _ = jax.jit(algorithm.update)(state._replace(opt_state=opt_state), rollout)
    batch = oracle_batch_of(config, state, rollout)
    gradient = oracle_gradient(state.model, batch, clip_range=0.2, vf_coef=0.5, ent_coef=0.0)
    for name, rate in (("policy", 0.05), ("value", 0.02)):
        # Each gradient is clipped by its own norm.
        part = getattr(gradient, name)
        clipped = jax.tree.map(lambda g, p=part: g * min(1.0, config.max_grad_norm / global_norm(p)), part)
        old = getattr(state.model, name)
        expected = Adam(old, config.adam_epsilon).step(old, clipped, rate)
        assert_trees_close(getattr(after.model, name), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"surrogate": "kl", "kl_control": "penalty"}, "kl_coef"),
        ({"kl_control": "learning_rate"}, "learning_rate_scale"),
    ],
    ids=["penalty", "learning rate"],
)
def test_what_moves_with_the_kl_moves_for_the_next_update(one_step, made_up, settings, name):
    config, _, _, rollout = one_step
    # The KL of an update is far above the target at first, and far below at the end.
    config = dataclasses.replace(config, target_kl=f"linear:1e-6:10:{TOTAL_STEPS}", **settings)
    algorithm = ppo.make(config, VECTOR, TOTAL_STEPS)
    update, state = jax.jit(algorithm.update), made_up(algorithm.init, seed=1)
    assert set(state.adaptive) == {name}
    for iteration, factors in (
        (0, {"kl_coef": 2.0, "learning_rate_scale": 1 / 1.5}),
        (9, {"kl_coef": 0.5, "learning_rate_scale": 1.5}),
    ):
        before = state._replace(iteration=np.int32(iteration), adaptive={name: np.float32(0.8)})
        after, metrics = update(before, rollout)
        assert after.adaptive[name] == pytest.approx(0.8 * factors[name], rel=1e-6)
        if name == "kl_coef":
            assert metrics["schedule/kl_coef"] == pytest.approx(0.8)
        else:
            assert metrics["schedule/learning_rate"] == pytest.approx(0.8 * 0.05 * (1 - iteration / 10), rel=1e-5)


def test_a_penalty_may_follow_a_schedule_unless_the_kl_moves_it(one_step, made_up):
    config, _, _, rollout = one_step
    config = dataclasses.replace(config, surrogate="kl", kl_coef=f"linear:3:1:{TOTAL_STEPS}")
    algorithm = ppo.make(config, VECTOR, TOTAL_STEPS)
    update, state = jax.jit(algorithm.update), made_up(algorithm.init)
    for iteration in (0, 5):
        _, metrics = update(state._replace(iteration=jnp.int32(iteration)), rollout)
        done = iteration * config.steps_per_iteration / TOTAL_STEPS
        assert metrics["schedule/kl_coef"] == pytest.approx(3 - 2 * done, rel=1e-5)
    for kl_coef in ("linear:3:1", 0.0):
        with pytest.raises(ConfigError, match="kl_coef"):
            dataclasses.replace(config, target_kl=0.01, kl_coef=kl_coef)


def test_settings_given_as_numpy_numbers_become_plain_ones():
    given = PPO(
        recurrent_size=np.int64(8),
        max_grad_norm=np.float32(0.5),
        adam_epsilon=np.float64(1e-6),
        clip_range=np.float32(0.25),
        num_envs=np.int32(2),
    )
    settings = json.loads(json.dumps(to_json(given, PPO)))
    assert (settings["recurrent_size"], settings["max_grad_norm"], settings["num_envs"]) == (8, 0.5, 2)
    assert PPO(**settings) == given


@pytest.mark.parametrize(
    ("control", "limit", "end", "epochs", "loss"),
    [("stop", 2.5, 3, 3, 1.0), ("roll_back", 2.5, 2, 3, 1.0), ("stop", 9, 5, 5, 2.0), ("roll_back", 9, 5, 5, 2.0)],
)
def test_epochs_after_one_that_went_too_far_are_left_out_or_that_one_is_undone_too(control, limit, end, epochs, loss):
    def epoch(count, key):
        return count + 1, {"loss": jnp.stack([count, count])}

    keys = jax.random.split(jax.random.key(0), 5)
    found, metrics = ppo._epochs_until(lambda count: count > limit, epoch, jnp.float32(0), keys, control)
    assert found == end
    # Metrics are means over the epochs that were run: 0, 1, 2, ...
    assert (metrics["policy/epochs"], metrics["loss"]) == (epochs, loss)
    assert metrics.get("policy/rolled_back") == {"stop": None, "roll_back": float(epochs < 5)}[control]


def test_epochs_stop_where_the_kl_from_the_old_policy_over_valid_rows_exceeds_1_5_of_the_target(one_step):
    config, _, state, rollout = one_step

    def updated(**settings):
        algorithm = ppo.make(dataclasses.replace(config, learning_rate=0.05, **settings), VECTOR, TOTAL_STEPS)
        return jax.jit(algorithm.update)(state, rollout)

    def means_and_stds(model):
        layers = model.policy.network.layers
        means = oracles.mlp(layers.weights, layers.biases, np.clip(rollout.obs, -5, 5).reshape(24, 3))
        return means[rollout.valid.ravel()], np.exp(np.float64(model.head.log_std))

    # The only minibatch is the batch as it is, so that two epochs are the first two of any larger number.
    (old, old_std), (new, new_std) = map(means_and_stds, (state.model, updated(num_epochs=2)[0].model))
    pairs = zip(old.ravel(), np.tile(old_std, len(old)), new.ravel(), np.tile(new_std, len(old)), strict=True)
    kl = sum(oracles.closed_normal_kl(*pair) for pair in pairs) / len(old)
    for share, epochs in ((0.999, 2), (1.001, 3)):
        _, metrics = updated(num_epochs=5, target_kl=share * kl / 1.5)
        assert metrics["policy/epochs"] == epochs


def test_recomputed_advantages_and_targets_are_those_of_the_current_value_function(one_step, recording):
    config, _, state, rollout = one_step
    config = dataclasses.replace(config, recompute_advantages=True, num_epochs=2, normalize_advantage="none")
    _, _, (first, second) = recording(ppo.make(config, VECTOR, TOTAL_STEPS))(state, rollout)
    batch = oracle_batch_of(config, state, rollout)
    order = np.argsort(first.log_prob), np.argsort(batch["log_prob"])
    np.testing.assert_allclose(first.returns[order[0]], batch["returns"][order[1]], atol=1e-5)
    again = np.argsort(second.log_prob)
    assert np.abs(second.returns[again] - first.returns[order[0]]).max() > 1e-3
    np.testing.assert_array_equal(second.value[again], first.value[order[0]])


def test_the_defaults_are_the_paper_s_table_3():
    config = PPO()
    assert (config.horizon, config.num_epochs, config.minibatch_size) == (2048, 10, 64)
    assert (config.gamma, config.gae_lambda) == (Schedule(0.99, 0.99), Schedule(0.95, 0.95))
    assert (config.clip_range, config.learning_rate) == (Schedule(0.2, 0.2), Schedule(3e-4, 0.0))
    assert (config.steps_per_iteration, config.gradient_steps_per_iteration) == (2048, 320)
    assert (config.vf_coef, config.ent_coef) == (Schedule(1.0, 1.0), Schedule(0.0, 0.0))


def test_settings_are_frozen_hashable_and_equal_by_value():
    config = PPO(hidden_sizes=[8, 8])  # type: ignore[arg-type]
    assert config.hidden_sizes == (8, 8)
    assert hash(config) == hash(PPO(hidden_sizes=(8, 8)))
    assert dataclasses.replace(config, clip_range=0.1).clip_range == Schedule(0.1, 0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.gamma = 1.0  # type: ignore[misc]


def test_a_minibatch_size_that_does_not_divide_names_those_that_do():
    with pytest.raises(ConfigError, match="32 or 40 or 50") as error:
        PPO(num_envs=2, horizon=800, minibatch_size=48, num_epochs=1)
    assert error.value.field == "minibatch_size"


def test_environments_without_a_policy_are_refused_when_the_algorithm_starts():
    spec = EnvSpec(OBSERVATION, spaces.Dict((("a", spaces.Box((2,), "int32", 0.0, 3.0)),)))
    with pytest.raises(UnsupportedSpaceError, match="action_space"):
        ppo.make(PPO(), spec, 1000).init(jax.random.key(0))


WRONG: dict[str, list[Any]] = {
    "num_envs": [0, -1, 1.5, True, "1", None],
    "horizon": [0, 2048.5, "2048"],
    "num_epochs": [0, -3, 1.5, None],
    "minibatch_size": [0, 1, 63, 4096, 64.5, None, "64"],
    "learning_rate": [0.0, -1e-3, math.nan, math.inf, "fast", "linear:0:0", "linear:1e-3:-1e-3", "linear:1:0:0", None],
    "value_learning_rate": [0.0, -1e-3, math.nan, "linear:-1e-3:1"],
    "adam_epsilon": [0.0, -1e-8, math.nan, math.inf, "small", None, True],
    "surrogate": ["cpi", "Clip", None, True],
    "clip_range": [0.0, -0.1, math.nan, "linear:0.2", "linear:0.2:-0.1", None, True],
    "clip_range_high": [0.0, -0.1, math.nan, "linear:0.2", "linear:-0.1:0.2", True],
    "kl_coef": [-1.0, math.nan, math.inf, "linear:1:-1", None],
    "target_kl": [0.0, -0.01, math.nan, "small", "linear:0.01:-0.01"],
    "kl_control": ["halt", "Stop", None],
    "gamma": [-0.1, 1.01, math.nan, "linear:0.9:1.1", None],
    "gae_lambda": [-0.1, 1.01, math.inf, "lambda", None],
    "value_target": ["gae", "TD", None, 1],
    "max_entropy_alpha": [-0.1, math.nan, "warm", "linear:0.1:-0.1", None],
    "vf_coef": [-0.5, math.nan, "linear:0.5:-0.5", None],
    "ent_coef": [math.nan, math.inf, "bonus", None],
    "recompute_advantages": [1, "true", None],
    "normalize_advantage": ["yes", "Batch", None, True, []],
    "normalize_observation": [1, "true", None],
    "normalize_return": [0, "false", None],
    "clip_reward": [1, "sign", None],
    "compute_dtype": ["float16", "bf16", None],
    "max_grad_norm": [0.0, -0.5, math.nan, math.inf, "none", True],
    "clip_range_value": [0.0, -0.2, math.nan, "0.2"],
    "hidden_sizes": [64, "64", (0,), (-8,), (8, 8.5), (True,), None],
    "activation": ["gelu", "Tanh", None, 1],
    "image_network": ["resnet", None, True],
    "recurrent": ["rnn", "LSTM", None, True, np.zeros(2)],
    "recurrent_size": [0, -64, 64.5, None, "64"],
    "shared_trunk": [1, "true", None],
    "action_distribution": ["normal", None],
    "log_std": ["fixed", "linear:0", math.nan, -21.0, 21.0, None, True, np.zeros(3)],
}


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, values in WRONG.items() for v in values], ids=lambda each: repr(each)[:30]
)
def test_a_wrong_setting_is_refused_by_name(field, value):
    with pytest.raises(ConfigError) as error:
        PPO(**{field: value})
    assert error.value.field == field
    assert str(error.value).startswith(f"{field} = ")
    assert error.value.fix.endswith(".")


def test_every_setting_has_a_wrong_value_in_the_table():
    assert set(WRONG) == {field.name for field in dataclasses.fields(PPO)}


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"shared_trunk": True, "value_learning_rate": 1e-3}, "value_learning_rate"),
        ({"target_kl": 0.01, "kl_control": "penalty"}, "kl_control"),
        ({"recurrent": "gru", "num_envs": 4, "horizon": 32, "minibatch_size": 16}, "minibatch_size"),
        ({"action_distribution": "beta", "log_std": "state"}, "log_std"),
    ],
    ids=lambda each: each if isinstance(each, str) else None,
)
def test_settings_that_contradict_each_other_are_refused(settings, field):
    with pytest.raises(ConfigError) as error:
        PPO(**settings)
    assert error.value.field == field


def test_a_minibatch_of_a_policy_with_memory_holds_whole_trajectories():
    with pytest.raises(ConfigError, match=r"no multiple of horizon = 32.*Use 32 or 64 or 128"):
        PPO(recurrent="lstm", num_envs=4, horizon=32, minibatch_size=16)
    assert PPO(recurrent="lstm", num_envs=4, horizon=32, minibatch_size=64).minibatches_per_epoch == 2
