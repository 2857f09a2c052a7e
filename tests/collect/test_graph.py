"""Compiled rollouts of JAX environments, beside the host loop on the same environments."""

import jax
import numpy as np
import pytest

import inchworm as iw
from inchworm.algorithms.iteration import make_iteration
from inchworm.algorithms.ppo import PPO
from inchworm.collect.collector import TurnCollector
from inchworm.collect.graph import GraphCollector, make_advance, make_programs
from inchworm.collect.host import HostRollouts
from inchworm.collect.rollout import make_rollout
from inchworm.envs.gymnasium import GymnasiumPool
from inchworm.envs.jax_env import GymnasiumView
from inchworm.envs.traced import Copies
from inchworm.numerics.tree import to_arrays
from inchworm.runner import make_algorithm
from jax_probes import Cue, Recall

CONFIG = {"num_envs": 3, "horizon": 11, "hidden_sizes": (8,), "recurrent_size": 8, "minibatch_size": 11}
CASES = {
    "discrete": (Cue("discrete"), {}),
    "masked hybrid of dicts": (Cue("hybrid", masked=True, dict_obs=True), {}),
    "beta": (Cue("box"), {"action_distribution": "beta"}),
    "memory": (Recall(), {"recurrent": "gru"}),
}


@pytest.mark.parametrize("case", CASES)
def test_compiled_and_host_rollouts_and_updates_are_the_same(case):
    env, settings = CASES[case]
    config = PPO(**CONFIG | settings | {"num_epochs": 2})
    learner = make_algorithm(config, env.spec, 1000)
    iterate = make_iteration(learner, env.spec, config, 1000)
    shape, envs = (config.horizon, config.num_envs), Copies(env)
    seen = {"graph": [], "host": []}

    def recording(path):
        def record(state, collected):
            jax.debug.callback(lambda rollout: seen[path].append(jax.tree.map(np.array, rollout)), collected)
            return iterate(state, collected)

        return record

    advance = make_advance(make_rollout(envs, config.squash), recording("graph"), shape, None)
    programs = make_programs(learner.init, envs, advance, capacity=2, mesh=None)
    graph = GraphCollector(programs, [5], config.num_envs)
    rollouts = HostRollouts(
        GymnasiumPool(lambda: GymnasiumView(env), config.num_envs, 5), config.horizon, config.squash
    )
    state = jax.jit(learner.init)(jax.random.key(5))
    host = TurnCollector(rollouts, state, jax.jit(recording("host")), None)
    (by_graph,), (first,), (second,) = graph.advance([2]), host.advance([1]), host.advance([1])
    jax.effects_barrier()
    for ours, theirs in zip(by_graph, [*first, *second], strict=True):
        assert ours.metrics.keys() == theirs.metrics.keys()
        for leaf, expected in zip(ours.episodes, theirs.episodes, strict=True):
            np.testing.assert_allclose(leaf, expected, atol=1e-5)
    for collected, expected in zip(*(map(to_arrays, rollouts) for rollouts in seen.values()), strict=True):
        assert collected.keys() == expected.keys()
        for name, array in collected.items():
            assert array.dtype == expected[name].dtype, name
            np.testing.assert_allclose(array, expected[name], atol=2e-5, err_msg=name)
    for name, array in to_arrays(graph.state(0).model).items():
        np.testing.assert_allclose(array, to_arrays(host.state(0).model)[name], atol=1e-4, err_msg=name)


def test_a_run_on_a_jax_environment_trains_evaluates_and_resumes_exactly(tmp_path):
    settings = {"num_envs": 4, "horizon": 16, "minibatch_size": 32, "hidden_sizes": (8,), "total_steps": 64 * 6}
    env = Cue("discrete")
    whole = iw.train(env, out=tmp_path, name="whole", progress=False, evaluation_episodes=2, **settings)
    assert whole.summary["evaluation_deterministic"]["lengths"] == [4, 4]

    def stop(report):
        return report.iteration == 3

    part = iw.train(
        env, out=tmp_path, name="part", progress=False, evaluation_episodes=0, on_iteration=stop, **settings
    )
    resumed = iw.resume(part.folder, env, progress=False, evaluation_episodes=0)
    assert resumed.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    assert resumed.summary["return_100"] == whole.summary["return_100"]
