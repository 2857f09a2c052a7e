"""Compiled rollouts of JAX environments, beside the host loop on the same environments."""

import jax
import numpy as np
import pytest

import inchworm as iw
from inchworm import api
from inchworm.algorithms.iteration import make_iteration
from inchworm.algorithms.ppo import PPO
from inchworm.collect.graph import GraphCollector, make_advance, make_rollout, make_start
from inchworm.collect.host import HostCollector
from inchworm.envs.gymnasium import GymnasiumPool
from inchworm.envs.jax_env import GymnasiumView
from inchworm.numerics.tree import to_arrays
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
    learner = api._make_algorithm(config, env.spec, 1000, api._OwnParts())
    iterate = make_iteration(learner, env.spec, config, 1000)
    rollout = make_rollout(env, (config.horizon, config.num_envs), config.squash)
    seen = {"graph": [], "host": []}

    def recording(path):
        def record(state, collected):
            seen[path].append(jax.device_get(collected))
            return compiled(state, collected)

        return record

    compiled, collect = jax.jit(iterate), jax.jit(rollout)

    def collect_and_record(*args):
        collected, *rest = collect(*args)
        seen["graph"].append(jax.device_get(collected))
        return collected, *rest

    graph = GraphCollector(jax.jit(make_start(env)), make_advance(collect_and_record, compiled), config.num_envs, 5)
    pool = GymnasiumPool(lambda: GymnasiumView(env), config.num_envs, 5)
    host = HostCollector(pool, config.horizon, config.squash, recording("host"))
    by_graph = by_host = jax.jit(learner.init)(jax.random.key(0))
    for _ in range(2):
        by_graph, _, graph_episodes = graph.advance(by_graph)
        by_host, _, host_episodes = host.advance(by_host)
        for ours, theirs in zip(graph_episodes, host_episodes, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        collected, expected = (to_arrays(rollouts[-1]) for rollouts in seen.values())
        assert collected.keys() == expected.keys()
        for name, array in collected.items():
            assert array.dtype == expected[name].dtype, name
            np.testing.assert_allclose(array, expected[name], atol=2e-5, err_msg=name)
    for name, array in to_arrays(by_graph.model).items():
        np.testing.assert_allclose(array, to_arrays(by_host.model)[name], atol=1e-4, err_msg=name)


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
