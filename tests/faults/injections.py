"""Faults that are injected a few at a time in every run of the tests, and for hours by soak.py.

Each function injects faults by a seed, so that a further seed injects others, and returns how many were survived and
how many detected; one that was neither raises `AssertionError`, which makes it silent.
"""

import contextlib
import dataclasses
import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import numpy as np
import psutil

import inchworm as iw
from inchworm import loop
from inchworm.errors import CheckpointError, EnvironmentContractError, InchwormError
from inchworm.io.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, prune_checkpoints, save_checkpoint
from inchworm.io.loggers import JsonLines, TensorBoard
from inchworm.io.run_folder import RunFolder

SMALL = iw.PPO(num_envs=2, horizon=16, minibatch_size=16, num_epochs=1, hidden_sizes=(8,), normalize_return=True)
QUIET: dict[str, Any] = {"evaluation_episodes": 0, "progress": False}
Count = tuple[int, int]
"""How many faults were survived, and how many detected."""


class Plan(gymnasium.Env):
    """An environment with a plan of faults: what it does at which step, reset or close, counted over all of them."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space: gymnasium.Space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    length = 20
    faults: dict[tuple[str, int], Callable[[Any], Any]] = {}  # noqa: RUF012
    """From a method and the number of its call to what becomes of its answer."""
    calls: dict[str, int] = {}  # noqa: RUF012

    def answer(self, method: str, answer: Any) -> Any:
        number = type(self).calls[method] = type(self).calls.get(method, 0) + 1
        fault = type(self).faults.get((method, number))
        return answer if fault is None else fault(answer)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.answer("reset", (self.look(), {}))

    def look(self) -> np.ndarray:
        return self.np_random.normal(size=3).astype(np.float32)

    def step(self, action):
        self.steps += 1
        reward = 1.0 - float(np.square(action - 0.3).mean())
        return self.answer("step", (self.look(), reward, False, self.steps >= self.length, {}))

    def close(self):
        self.answer("close", None)


def planned(faults: dict[tuple[str, int], Callable[[Any], Any]], **attributes: Any) -> type[Plan]:
    return type("Planned", (Plan,), {"faults": faults, "calls": {}} | attributes)


def train(env: Any, out: Path, **how: Any) -> iw.Run:
    with warnings.catch_warnings(action="ignore"):
        return iw.train(env, SMALL, total_steps=320, out=out, **QUIET | how)


def raising(error: BaseException) -> Callable[[Any], Any]:
    def fault(answer: Any) -> Any:
        raise error

    return fault


def environment_raises(seed: int, out: Path) -> Count:
    """RF1: an error that the environment raises is told as its own, and the run goes on from its last good update."""
    rng = np.random.default_rng(seed)
    method = ("step", "step", "reset", "close")[rng.integers(4)]
    number = {"step": int(rng.integers(1, 320)), "reset": int(rng.integers(1, 16)), "close": 2}[method]
    errors = (RuntimeError("lost"), ValueError(), AssertionError("x"), OSError(5, "I/O"), MemoryError(), SystemExit(0))
    error = errors[rng.integers(len(errors))]
    env = planned({(method, number): raising(error)})
    if method == "close":
        with contextlib.suppress(SystemExit):
            assert train(env, out).summary["env_steps"] == 320
        return 1, 0
    try:
        train(env, out, checkpoint_seconds=0.0)
    except EnvironmentContractError as told:
        assert type(error).__name__ in str(told)  # noqa: PT017
    else:
        raise AssertionError("it was not told")
    (folder,) = (RunFolder(path) for path in out.glob("*/ppo/*"))
    saved = list_checkpoints(folder.checkpoints)
    done = {"step": number - 1, "reset": 0}[method] // 32
    if method == "step":
        assert len(saved) == min(done, SMALL.num_envs + 1) or len(saved) >= 1 or done == 0
    if saved:
        with warnings.catch_warnings(action="ignore"):
            assert iw.resume(folder.path, planned({}), **QUIET).summary["env_steps"] == 320
    return 0, 1


HUGE = (1e30, -1e30, 3e38)


def numbers_that_are_none(seed: int, out: Path) -> Count:
    """RF13: NaN, infinity and huge numbers; what is learned stays finite, and what is dropped is counted."""
    rng = np.random.default_rng(seed)
    faults: dict[tuple[str, int], Callable[[Any], Any]] = {}
    not_finite = set()
    for iteration in range(1, 10, 2):
        step = 32 * iteration + int(rng.integers(1, 32))
        value = (float("nan"), float("inf"), float("-inf"), *HUGE)[rng.integers(6)]
        part = int(rng.integers(2))

        def fault(answer: Any, value: float = value, part: int = part) -> Any:
            obs, reward, *rest = answer
            return (np.full(3, value, np.float32), reward, *rest) if part == 0 else (obs, value, *rest)

        faults["step", step] = fault
        if not np.isfinite(np.float32(value)):
            not_finite.add(iteration)
    run = train(planned(faults), out)
    arrays = [np.asarray(leaf) for leaf in _leaves(run.policy)]
    assert all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")
    dropped = {row["iteration"] - 1 for row in run.metrics() if row["guard/skipped"]}
    assert not_finite <= dropped
    return len(faults) - len(not_finite), len(not_finite)


def _leaves(policy: iw.Policy) -> list[Any]:
    import jax

    return jax.tree.leaves((policy.model, policy.obs_stats))


CLOCKS: tuple[dict[str, Callable[[float, int], float]], ...] = (
    {"monotonic": lambda now, call: 1000.0},
    {"monotonic": lambda now, call: now + 86_400.0 * (call > 20)},
    {"time": lambda now, call: now - 3e7 * (call > 5)},
    {"time": lambda now, call: 0.0},
    {"monotonic": lambda now, call: now + 1e6 * call, "time": lambda now, call: now - 1e6 * call},
    {"perf_counter": lambda now, call: 5.0},
)


def clocks(seed: int, out: Path) -> Count:
    """RF16: clocks that jump or stand still change no rate into a negative one, and nothing that is learned."""
    real = {name: getattr(time, name) for name in ("monotonic", "time", "perf_counter")}
    calls = dict.fromkeys(real, 0)

    def clock(name: str, change: Callable[[float, int], float]) -> Callable[[], float]:
        def read() -> float:
            if threading.current_thread() is not threading.main_thread():
                return real[name]()
            calls[name] += 1
            return change(real[name](), calls[name])

        return read

    with contextlib.ExitStack() as stack:
        for name, change in CLOCKS[seed % len(CLOCKS)].items():
            stack.enter_context(mock.patch.object(time, name, clock(name, change)))
        run = train(planned({}), out)
    rows = run.metrics()
    assert len(rows) == 10
    assert all(row["time/steps_per_second"] > 0 for row in rows)
    assert all(a["seconds"] <= b["seconds"] for a, b in pairwise(rows))
    return 1, 0


def observers(seed: int, out: Path) -> Count:
    """RF17: callbacks and loggers that raise are told once and change nothing that is learned."""
    rng = np.random.default_rng(seed)
    expected = train(planned({}), out / "a").summary["parameters_sha256"]
    error = (RuntimeError("x"), OSError(28, "No space left"), KeyError("k"), MemoryError())[rng.integers(4)]
    kind, number = ("callback", "metrics", "tensorboard")[rng.integers(3)], int(rng.integers(1, 10))
    seen = 0

    def fail(*arguments: Any) -> None:
        nonlocal seen
        seen += 1
        if seen >= number:
            raise error

    with contextlib.ExitStack() as stack, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if kind != "callback":
            stack.enter_context(
                mock.patch.object({"metrics": JsonLines, "tensorboard": TensorBoard}[kind], "write", fail)
            )
        how = {"on_iteration": fail} if kind == "callback" else {}
        run = iw.train(planned({}), SMALL, total_steps=320, out=out / "b", **QUIET | how)
    assert run.summary["parameters_sha256"] == expected
    assert sum("Training goes on" in str(one.message) for one in told) == 1
    return 1, 0


def _checkpoint(iteration: int, rng: np.random.Generator) -> Checkpoint:
    state = {"weights": rng.normal(size=(16, 8)).astype(np.float32), "count": np.array(iteration, np.int32)}
    return Checkpoint(iteration, 32 * iteration, state, {"obs": rng.normal(size=4)}, {"a": [1, 2]}, {"env": "x"})


DISK_CALLS = ("open", "write", "fsync", "mkdir", "rename", "replace")
DISK_ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)


class Disk:
    """Counts the calls of the file system that are about a folder, and fails some of them."""

    def __init__(self, folder: Path, fails: Callable[[int], int | BaseException]) -> None:
        """`fails` gives what a call raises, by its number: an exception, an error's number, or 0."""
        self._folder, self._fails, self.calls = str(folder), fails, 0
        self._descriptors: set[int] = set()
        self._real = {name: getattr(os, name) for name in DISK_CALLS}

    def _call(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(target: Any, *arguments: Any, **named: Any) -> Any:
            ours = target in self._descriptors or named.get("dir_fd") in self._descriptors
            ours = ours or (isinstance(target, str | Path) and str(target).startswith(self._folder))
            if ours:
                self.calls += 1
                if error := self._fails(self.calls):
                    raise OSError(error, os.strerror(error)) if isinstance(error, int) else error
            result = real(target, *arguments, **named)
            if name == "open":
                (self._descriptors.add if ours else self._descriptors.discard)(result)
            return result

        return call

    def __enter__(self) -> "Disk":
        self._stack = contextlib.ExitStack()
        for name in DISK_CALLS:
            self._stack.enter_context(mock.patch.object(os, name, self._call(name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def disk(seed: int, out: Path) -> Count:
    """RF11: calls of the file system fail, once or from then on; what was saved loads, and what is not is told."""
    rng = np.random.default_rng(seed)
    first, number = int(rng.integers(1, 200)), int(rng.choice(DISK_ERRORS))
    last = first if rng.random() < 0.3 else first + int(rng.integers(2, 100)) if rng.random() < 0.5 else 10**9
    expected = train("CartPole-v1", out / "a").summary["parameters_sha256"]
    with Disk(out / "b", lambda call: number if first <= call <= last else 0) as failing:
        try:
            run = train("CartPole-v1", out / "b", checkpoint_seconds=0.0)
        except InchwormError as error:
            told = str(error)
            assert os.strerror(number) in told, told
        else:
            assert run.summary["parameters_sha256"] == expected
            return 1, 0
    assert failing.calls >= first
    for path in (out / "b").glob("*/ppo/*"):
        if list_checkpoints(RunFolder(path).checkpoints):
            with warnings.catch_warnings(action="ignore"):
                assert iw.resume(path, **QUIET).summary["parameters_sha256"] == expected
    return 0, 1


def damaged_checkpoints(seed: int, out: Path, count: int = 20) -> Count:
    """RF12: bytes of a checkpoint that are changed, cut off or added are found."""
    rng = np.random.default_rng(seed)
    path = save_checkpoint(out / "checkpoints", _checkpoint(1, rng))
    files = sorted(path.iterdir())
    for _ in range(count):
        file = files[rng.integers(len(files))]
        whole = file.read_bytes()
        damaged = bytearray(whole)
        match rng.integers(3):
            case 0:
                damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
            case 1:
                del damaged[rng.integers(len(whole)) :]
            case _:
                damaged += b"\0"
        file.write_bytes(damaged)
        try:
            load_checkpoint(path)
        except CheckpointError:
            file.write_bytes(whole)
            continue
        raise AssertionError(f"{file.name} was changed and loaded")
    load_checkpoint(path)
    return 0, count


def many_checkpoints(seed: int, out: Path, count: int = 100) -> Count:
    """RL4: of many checkpoints few are kept, which all verify, and nothing else stays on the disk."""
    rng, folder = np.random.default_rng(seed), out / "checkpoints"
    for iteration in range(1, count + 1):
        save_checkpoint(folder, _checkpoint(iteration, rng))
        prune_checkpoints(folder, 3, folder / "000001")
        kept = [path.name for path in list_checkpoints(folder)]
        assert kept == [f"{i:06d}" for i in sorted({1, *range(max(1, iteration - 2), iteration + 1)})]
        for path in list_checkpoints(folder):
            load_checkpoint(path)
        assert sorted(os.listdir(folder)) == kept
    return count, 0


class Held:
    """What a process holds: memory in MiB, descriptors, threads, shared memory."""

    def __init__(self) -> None:
        gc.collect()
        process = psutil.Process()
        self.memory = process.memory_info().rss / 2**20
        self.descriptors, self.threads = process.num_fds(), process.num_threads()
        self.shared = len(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else 0
        self.children = len(process.children())

    def check_against(self, before: "Held", memory: float) -> None:
        assert self.memory - before.memory < memory, f"{self.memory - before.memory:.1f} MiB more"
        for name in ("descriptors", "threads", "shared", "children"):
            assert getattr(self, name) <= getattr(before, name), name


def one_after_the_other(seed: int, out: Path, count: int = 6) -> Count:
    """RL3: trainings in one process, one after the other, leave nothing behind."""
    for warm in range(6):
        train("CartPole-v1", out / f"warm{warm}")
    before = Held()
    for number in range(count):
        train("CartPole-v1", out / str(number), seed=number)
        gc.collect()  # what waits for Python's collector makes a heap grow that does not shrink again, and is not held
    Held().check_against(before, memory=0.5 * count)
    return count, 0


class Watcher:
    """Looks at what the process holds when half of a run is done, and in its last iteration."""

    def __init__(self) -> None:
        self.held: list[Held] = []

    def __call__(self, report: iw.Iteration) -> None:
        share = report.env_steps / report.total_steps
        if share >= 1.0 or (share > 0.5 and not self.held):
            self.held.append(Held())

    def check(self) -> None:
        self.held[-1].check_against(self.held[0], memory=5.0)


def long_run(seed: int, out: Path, steps: int = 200_000) -> Count:
    """RL1: a long compiled run holds at its end what it held before."""
    watcher = Watcher()
    algorithm = iw.PPO(num_envs=64, horizon=64, minibatch_size=1024, num_epochs=1, hidden_sizes=(8,))
    how = QUIET | {"backend": "jax", "on_iteration": watcher, "seed": seed}
    run = iw.train("CartPole-v1", algorithm, total_steps=steps, out=out, **how)
    watcher.check()
    assert run.summary["env_steps"] >= steps
    return 1, 0


def endless_episode(seed: int, out: Path, steps: int = 5_000) -> Count:
    """RL9: an episode that never ends, and episodes of one step; all that is learned is finite, memory is flat."""
    for length in (10**9, 1):
        watcher = Watcher()
        with warnings.catch_warnings(action="ignore"):
            how = QUIET | {"on_iteration": watcher, "seed": seed}
            run = iw.train(planned({}, length=length), SMALL, total_steps=steps, out=out / str(length), **how)
        watcher.check()
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in _leaves(run.policy))
        assert run.summary["episodes"] == (0 if length > 1 else run.summary["env_steps"])
    return 2, 0


def learns_under_crashes(seed: int, out: Path) -> Count:
    """RF21: a run whose environment crashes again and again learns what one learns that is left in peace."""
    rng = np.random.default_rng(seed)
    settings = dataclasses.replace(SMALL, horizon=64, minibatch_size=32, num_epochs=4, learning_rate=3e-3)

    def crashing() -> type[Plan]:
        return planned({("step", int(rng.integers(2000, 6000))): raising(RuntimeError("crash"))})

    folder, crashes = None, 0
    while True:
        with warnings.catch_warnings(action="ignore"):
            try:
                if folder is None:
                    how = QUIET | {"checkpoint_seconds": 0.0}
                    run = iw.train(crashing(), settings, total_steps=20_000, out=out, seed=seed, **how)
                else:
                    run = iw.resume(folder, crashing(), **QUIET)
                break
            except EnvironmentContractError:
                crashes += 1
                (folder,) = out.glob("*/ppo/*")
    # At its best it earns 20; an untrained policy of deviation one 8.
    assert run.summary["return_100"] > 15.0
    assert crashes >= 2
    return crashes, 0


def other_cores(seed: int, out: Path) -> Count:
    """RF19: a run that goes on in other processes or threads has the same parameters, or is told not to be exact."""
    whole = train("CartPole-v1", out / "a")
    stopped = train("CartPole-v1", out / "b", on_iteration=lambda report: report.iteration == 4)
    config = RunFolder(stopped.folder).config
    config.write_text(config.read_text().replace('"env_processes": 1', '"env_processes": 2'))
    run = iw.resume(stopped.folder, **QUIET)
    assert run.config.env_processes == 2
    assert run.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    stopped = train("CartPole-v1", out / "c", on_iteration=lambda report: report.iteration == 4)
    with mock.patch.dict(os.environ, NPROC="2"), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        iw.resume(stopped.folder, **QUIET)
    assert any("threads was '1' and is '2'" in str(one.message) for one in told)
    return 1, 1


def at_once(seed: int, out: Path) -> Count:
    """RL7: of trainings that begin at once under one name one goes on, and the others are told."""
    found: list[Any] = []

    def begin() -> None:
        try:
            found.append(iw.train("CartPole-v1", SMALL, total_steps=320, out=out, name="same", **QUIET))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=begin) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = [one for one in found if isinstance(one, iw.Run)]
    assert len(runs) == 1
    assert all("exists already" in str(one) for one in found if one is not runs[0])
    assert len(runs[0].metrics()) == 10
    return 1, 2


assert loop.MAX_SKIPPED_IN_ROW > 5, "faults of RF13 must not end a run"

ROWS: dict[str, Callable[..., Count]] = {
    "RL1": long_run,
    "RL3": one_after_the_other,
    "RL4": many_checkpoints,
    "RL7": at_once,
    "RL9": endless_episode,
    "RF1": environment_raises,
    "RF11": disk,
    "RF12": damaged_checkpoints,
    "RF13": numbers_that_are_none,
    "RF16": clocks,
    "RF17": observers,
    "RF19": other_cores,
    "RF21": learns_under_crashes,
}
ALONE = ("RL1", "RL3", "RL9")
"""Rows that look at what a process holds, which must be one of their own."""


MORE: dict[str, dict[str, int]] = {"RL1": {"steps": 2_000_000}, "RL3": {"count": 20}, "RL9": {"steps": 10_000}}
"""What soak.py has more of with each seed."""


def inject_alone(row: str, seed: int, out: Path, seeds: int = 1, more: bool = False) -> Count:
    """The injections of so many seeds, from one on, in a process of their own."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    how = json.dumps(MORE.get(row, {}) if more else {})
    command = [sys.executable, "-P", __file__, row, str(seed), str(seeds), str(out), how]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    survived, detected = json.loads(done.stdout.splitlines()[-1])
    return survived, detected


def main(row: str, first: int, seeds: int, out: Path, how: dict[str, int]) -> None:
    totals = np.zeros(2, int)
    for seed in range(first, first + seeds):
        (folder := out / str(seed)).mkdir()
        totals += ROWS[row](seed, folder, **how)
        shutil.rmtree(folder)
    print(json.dumps(totals.tolist()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), json.loads(sys.argv[5]))
