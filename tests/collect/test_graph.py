"""Compiled rollouts of JAX environments, beside the host loop on the same environments."""

from functools import cache

import jax
import numpy as np
import pytest

import inchworm as iw
from inchworm import build
from inchworm.algorithms.iteration import make_iteration
from inchworm.algorithms.ppo import PPO
from inchworm.build import make_algorithm
from inchworm.collect.collector import TurnCollector
from inchworm.collect.graph import GraphCollector, StackedCollector, make_advance, make_programs
from inchworm.collect.host import HostRollouts
from inchworm.collect.rollout import make_rollout
from inchworm.envs.gymnasium import GymnasiumPool
from inchworm.envs.jax_env import GymnasiumView
from inchworm.envs.traced import Copies
from inchworm.errors import CheckpointError
from inchworm.numerics.tree import fingerprint, to_arrays
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
    programs = make_programs(learner.init, envs, advance, capacity=2)
    graph = GraphCollector(programs, [5], config.num_envs)
    rollouts = HostRollouts(
        GymnasiumPool(lambda: GymnasiumView(env), config.num_envs, 5), config.horizon, config.squash
    )
    state = jax.jit(learner.init)(jax.random.key(5))
    host = TurnCollector(rollouts, state, jax.jit(recording("host")), None)
    (by_graph,), (first,), (second,) = graph.advance([2]), host.advance([1]), host.advance([1])
    jax.effects_barrier()
    for ours, theirs in zip(by_graph, [*first, *second], strict=True):
        assert ours.metrics.keys() | {"time/environment", "time/policy"} == theirs.metrics.keys()
        for leaf, expected in zip(ours.episodes, theirs.episodes, strict=True):
            np.testing.assert_allclose(leaf, expected, atol=1e-5)
    for collected, expected in zip(*(map(to_arrays, rollouts) for rollouts in seen.values()), strict=True):
        assert collected.keys() == expected.keys()
        for name, array in collected.items():
            assert array.dtype == expected[name].dtype, name
            np.testing.assert_allclose(array, expected[name], atol=1e-5, err_msg=name)
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


SMALL = PPO(num_envs=2, horizon=8, hidden_sizes=(4,), minibatch_size=8, num_epochs=2)


@cache
def small_programs():
    env = Cue("discrete")
    learner = make_algorithm(SMALL, env.spec, 1000)
    iterate = make_iteration(learner, env.spec, SMALL, 1000)
    envs = Copies(env)
    advance = make_advance(make_rollout(envs, SMALL.squash), iterate, (SMALL.horizon, SMALL.num_envs), None)
    return make_programs(learner.init, envs, advance, capacity=5)


def small_collector(*seeds):
    return GraphCollector(small_programs(), seeds, SMALL.num_envs)


def everything(collector, run=0):
    return fingerprint((collector.state(run), collector.snapshot(run)[0]))


def same(outcomes, expected):
    for ours, theirs in zip(outcomes, expected, strict=True):
        assert ours.metrics == theirs.metrics
        for leaf, other in zip(ours.episodes, theirs.episodes, strict=True):
            np.testing.assert_array_equal(leaf, other)


def test_several_iterations_in_a_call_are_bit_for_bit_those_of_single_calls():
    at_once, one_by_one = small_collector(3), small_collector(3)
    (outcomes,) = at_once.advance([4])
    same(outcomes, [one_by_one.advance([1])[0][0] for _ in range(4)])
    assert everything(at_once) == everything(one_by_one)


def test_a_call_that_is_repeated_with_fewer_iterations_is_as_if_it_had_had_fewer():
    collector, shorter = small_collector(3), small_collector(3)
    for one, counts in ((collector, [5]), (shorter, [2])):
        one.advance([3])
        one.advance(counts)
    collector.repeat([2])
    assert everything(collector) == everything(shorter)


def test_only_runs_whose_number_of_iterations_is_another_are_repeated():
    programs, calls = small_programs(), []

    def advance(learner, count):
        calls.append(int(count))
        return programs.advance(learner, count)

    collector = GraphCollector(programs._replace(advance=advance), [3, 4, 5], SMALL.num_envs)
    collector.advance([5, 3, 0])
    collector.repeat([2, 3, 0])
    assert calls == [5, 3, 2]
    shorter = small_collector(3, 4, 5)
    shorter.advance([2, 3, 0])
    for run in range(3):
        assert everything(collector, run) == everything(shorter, run)


def test_runs_side_by_side_are_bit_for_bit_the_single_runs():
    together, counts = small_collector(3, 4, 5), [4, 0, 2]
    outcomes = together.advance(counts)
    for run, (seed, count) in enumerate(zip((3, 4, 5), counts, strict=True)):
        alone = small_collector(seed)
        same(outcomes[run], alone.advance([count])[0])
        assert everything(together, run) == everything(alone)
    assert together.snapshot(1)[0].keys() == alone.snapshot(0)[0].keys()


STACKS = {
    "masked hybrid": (Cue("hybrid", masked=True, dict_obs=True), {}),
    "memory": (Recall(delay=3), {"recurrent": "gru", "recurrent_size": 4}),
}


@pytest.mark.parametrize("case", STACKS)
def test_runs_stacked_are_the_single_runs_up_to_rounding_and_taken_up_alone_tell_so(case):
    env, settings = STACKS[case]
    config = PPO(num_envs=3, horizon=6, hidden_sizes=(4,), minibatch_size=6, num_epochs=1, **settings)
    learner = make_algorithm(config, env.spec, 1000)
    iterate = make_iteration(learner, env.spec, config, 1000)
    envs, shape = Copies(env), (config.horizon, config.num_envs)
    advance = make_advance(make_rollout(envs, config.squash), iterate, shape, None)
    single = make_programs(learner.init, envs, advance, capacity=1)
    seeds, counts = (3, 4, 5), [1, 0, 1]
    stack = StackedCollector(make_programs(learner.init, envs, advance, 1, stacked=True), seeds, config.num_envs)
    outcomes = stack.advance(counts)
    for run, (seed, count) in enumerate(zip(seeds, counts, strict=True)):
        alone = GraphCollector(single, [seed], config.num_envs)
        (expected,) = alone.advance([count])
        assert len(outcomes[run]) == len(expected) == count
        for ours, theirs in zip(outcomes[run], expected, strict=True):
            assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-5, abs=1e-5)
            for leaf, other in zip(ours.episodes, theirs.episodes, strict=True):
                np.testing.assert_allclose(leaf, other, atol=1e-5)
        for name, array in to_arrays(alone.state(0).model).items():
            np.testing.assert_allclose(to_arrays(stack.state(run).model)[name], array, atol=1e-5, err_msg=name)

    stack.repeat([0, 0, 1])
    begun = GraphCollector(single, [3], config.num_envs)
    for name, array in to_arrays(begun.state(0)).items():
        np.testing.assert_allclose(to_arrays(stack.state(0))[name], array, atol=1e-6, err_msg=name)

    arrays, document = stack.snapshot(2)
    (problem,) = alone.restore(0, stack.state(2), arrays, document)
    assert "3 in all" in problem
    assert fingerprint(alone.snapshot(0)[0]) == fingerprint(arrays)
    assert alone.restore(0, stack.state(2), arrays, alone.snapshot(0)[1]) == []


@pytest.mark.parametrize(
    "document", [{}, {"kind": "pool", "stacked": 1}, {"kind": "jax"}, {"kind": "jax", "stacked": "x"}]
)
def test_a_garbled_document_is_refused(document):
    collector = small_collector(3)
    with pytest.raises(CheckpointError):
        collector.restore(0, collector.state(0), collector.snapshot(0)[0], document)


def test_a_run_taken_up_among_others_goes_on_as_it_was():
    alone = small_collector(4)
    alone.advance([2])
    taken_up = small_collector(3, 9)
    assert taken_up.restore(1, alone.state(0), *alone.snapshot(0)) == []
    same(taken_up.advance([0, 3])[1], alone.advance([3])[0])
    assert everything(taken_up, 1) == everything(alone)


def test_a_run_that_stops_within_a_call_ends_where_it_would_have_one_by_one(tmp_path, monkeypatch):
    def train(name):
        seen = []

        def stop(report):
            seen.append(report.metrics["loss/policy"])
            return report.iteration == 11

        run = iw.train(
            Cue("discrete"), SMALL, total_steps=16 * 40, out=tmp_path, name=name, progress=False, on_iteration=stop
        )
        return run.summary["parameters_sha256"], run.summary["iterations"], seen, run.summary["episodes"]

    at_once = train("at once")
    monkeypatch.setattr(build, "MAX_STEPS_PER_CALL", 1)
    build._compiled.cache_clear()
    one_by_one = train("one by one")
    assert at_once == one_by_one
    assert (at_once[1], len(at_once[2])) == (11, 11)
