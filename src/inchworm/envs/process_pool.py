"""Gymnasium environments divided between this process and others, so that several cores step them.

Each process has a `GymnasiumPool` of its share, and this one has the first share. What a step fills lies in memory that
all of them see; a pipe to each only says what to do and that it is done. Neither the shares nor their number change a
bit of a rollout, and a snapshot is that of a `GymnasiumPool` of them all.
"""

import contextlib
import json
import mmap
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from enum import Enum
from typing import IO, Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from inchworm import spaces
from inchworm.envs.gymnasium import EnvFactory, GymnasiumPool
from inchworm.envs.masks import ALWAYS_OR_NEVER, INFO_KEY
from inchworm.envs.pool import PoolSnapshot, StepBuffers, foreign_snapshot
from inchworm.errors import EnvironmentContractError, WorkerError
from inchworm.spaces import EnvSpec
from inchworm.workers import PATIENCE_SECONDS, error_from_json, how_it_ended, start_program

SPIN_SECONDS = 5e-3
"""How long a process looks for the next message before it sleeps, over a short update too: waking it takes longer."""
CHECK_MILLISECONDS = 1000
"""How often a process that waits for a message looks whether the other one is still there."""

_LENGTH_BYTES = 8


class Kind(Enum):
    """What a message is."""

    MAKE = b"m"
    RESET = b"0"
    STEP = b"s"
    SNAPSHOT = b"n"
    RESTORE = b"r"
    DONE = b"."
    FAILED = b"!"


class Channel:
    """Messages to and from another process, through a pipe each way: one byte that says what it is, and contents."""

    def __init__(self, incoming: int, outgoing: int, is_gone: Callable[[], bool]) -> None:
        """Takes two file descriptors, and what tells whether the other process has ended.

        The end of a pipe alone does not tell: a process that an environment has forked may hold it open.
        """
        self._incoming, self._outgoing, self._is_gone = incoming, outgoing, is_gone
        self._poll = select.poll()
        self._poll.register(incoming, select.POLLIN)

    def send(self, kind: Kind, contents: bytes = b"") -> None:
        """Raises `BrokenPipeError` if the other process is gone."""
        data = memoryview(kind.value + len(contents).to_bytes(_LENGTH_BYTES, "little") + contents)
        while data:
            data = data[os.write(self._outgoing, data) :]

    def receive(self) -> tuple[Kind, bytes]:
        """The next message; raises `EOFError` if the other process is gone."""
        if not self._poll.poll(0):
            self._wait()
        header = self._read(1 + _LENGTH_BYTES)
        length = int.from_bytes(header[1:], "little")
        return Kind(header[:1]), self._read(length) if length else b""

    def _wait(self) -> None:
        deadline = time.perf_counter() + SPIN_SECONDS
        while not self._poll.poll(0):
            if time.perf_counter() > deadline:
                break
            os.sched_yield()  # there may be more processes than cores
        while not self._poll.poll(CHECK_MILLISECONDS):
            if self._is_gone() and not self._poll.poll(0):
                raise EOFError

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            parts.append(os.read(self._incoming, size))
            if not parts[-1]:
                raise EOFError
            size -= len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)


class SharedRows(NamedTuple):
    """The steps of a rollout in memory that processes share."""

    t: np.ndarray
    """Which of them is being made."""
    actions: list[np.ndarray]
    """Its actions (N, ...)."""
    mask: np.ndarray
    """(N, num_mask_columns) of the choices after it."""
    masked: np.ndarray
    """(N,), where an environment gives masks."""
    buffers: StepBuffers

    @classmethod
    def in_memory(cls, spec: EnvSpec, horizon: int, num_envs: int, file: int) -> "SharedRows":
        """Rows of N environments, in an open file that has room for them or is made to have."""
        space = spec.action_space
        template = cls(
            np.empty((), np.int64),
            [np.empty((num_envs, *spaces.leaf_shape(leaf)), leaf.dtype) for leaf in spaces.leaves(space)],
            np.empty((num_envs, spaces.num_mask_columns(space)), bool),
            np.empty(num_envs, bool),
            StepBuffers.empty(spec.observation_space, horizon, num_envs),
        )
        arrays, structure = jax.tree.flatten(template)
        ends = np.cumsum([-(-array.nbytes // 64) * 64 for array in arrays]).tolist()
        if os.fstat(file).st_size < ends[-1]:
            os.ftruncate(file, ends[-1])
        memory = mmap.mmap(file, ends[-1])
        starts = [0, *ends[:-1]]
        return jax.tree.unflatten(
            structure,
            [np.ndarray(array.shape, array.dtype, memory, start) for array, start in zip(arrays, starts, strict=True)],
        )

    def of(self, share: slice) -> "SharedRows":
        """The rows of some of the environments."""
        actions, mask, masked = jax.tree.map(lambda array: array[share], (self.actions, self.mask, self.masked))
        return SharedRows(self.t, actions, mask, masked, columns(self.buffers, share))


def columns(buffers: StepBuffers, share: slice) -> StepBuffers:
    """The buffers of some of the environments."""
    return jax.tree.map(lambda array: array[:, share], buffers)


class _Helper:
    """A process that steps a share of the environments."""

    def __init__(self, share: slice, file: int, call: dict[str, Any]) -> None:
        self.share = share
        self._process: subprocess.Popen[bytes] = start_program("inchworm.envs.env_process", pass_fds=(file,), bufsize=0)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._channel = Channel(self._process.stdout.fileno(), self._process.stdin.fileno(), self.is_gone)
        self.send(Kind.MAKE, json.dumps(call | {"file": file, "first": share.start, "last": share.stop}).encode())

    def is_gone(self) -> bool:
        return self._process.poll() is not None

    def send(self, kind: Kind, contents: bytes = b"") -> None:
        with contextlib.suppress(BrokenPipeError):  # what became of it is told where its answer is waited for
            self._channel.send(kind, contents)

    def answer(self) -> bytes:
        """What it answers to what it was sent last.

        Raises:
            InchwormError: it failed.
        """
        try:
            kind, contents = self._channel.receive()
        except EOFError:
            how = how_it_ended(self._process.wait())
            envs = f"environments {self.share.start} to {self.share.stop - 1}"
            raise WorkerError(f"The process that steps {envs} {how} and left no word.") from None
        if kind == Kind.FAILED:
            raise error_from_json(json.loads(contents))
        return contents

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class ProcessPool:
    """Environments of one specification, in this process and others."""

    def __init__(
        self,
        factory: EnvFactory,
        spec: EnvSpec,
        num_envs: int,
        seed: int,
        horizon: int,
        processes: int,
        origin: Any,
        kwargs: dict[str, Any],
    ) -> None:
        """Starts the other processes, which make their environments meanwhile.

        Args:
            factory: makes an environment here.
            spec: of the environments.
            num_envs: how many, over all processes.
            seed: of the run.
            horizon: how many steps a rollout has.
            processes: how many, this one included.
            origin: what the others find the factory by, as JSON; with `kwargs` it does there what `factory` does here.
            kwargs: the environments' arguments.

        Raises:
            EnvironmentContractError: the environments of this process are not separate objects of one specification.
        """
        self.spec, self.num_envs = spec, num_envs
        bounds = [number * num_envs // processes for number in range(processes + 1)]
        self._own_share, self._others = slice(0, bounds[1]), slice(bounds[1], num_envs)
        self._helpers: list[_Helper] = []
        try:
            with _memory() as file:
                rows = SharedRows.in_memory(spec, horizon, num_envs, file.fileno())
                call = {"env": origin, "kwargs": kwargs, "spec": spaces.spec_to_json(spec), "num_envs": num_envs}
                call |= {"horizon": horizon, "seed": seed, "argv": sys.argv}
                for share in map(slice, bounds[1:-1], bounds[2:]):
                    self._helpers.append(_Helper(share, file.fileno(), call))
            self._own = GymnasiumPool(factory, bounds[1], seed)
        except BaseException:
            self._close_helpers()
            raise
        self._there = rows.of(self._others)
        self._mask: np.ndarray | None = None
        self._made = False
        self._restarts = [0] * num_envs
        self._whole = True
        """False in the middle of a step, and for good where one has failed or a process has ended: from there no
        episode can go on."""
        self._buffers: StepBuffers | None = None

    @property
    def mask(self) -> np.ndarray | None:
        return self._mask

    def reset(self, obs: list[np.ndarray]) -> None:
        self._tell(Kind.RESET)
        self._own.reset([leaf[self._own_share] for leaf in obs])
        self._answers()
        self._take_start(obs)

    def step(self, actions: list[np.ndarray], t: int, buffers: StepBuffers) -> None:
        self._whole = False
        own, others, there = self._own_share, self._others, self._there
        for shared, leaf in zip(there.actions, actions, strict=True):
            shared[...] = leaf[others]
        there.t[...] = t
        self._tell(Kind.STEP)
        if self._buffers is not buffers:
            self._buffers, self._own_buffers = buffers, columns(buffers, own)
        self._own.step([leaf[own] for leaf in actions], t, self._own_buffers)
        for helper in self._helpers:
            helper.answer()
        for leaf, shared in zip(buffers.obs, there.buffers.obs, strict=True):
            leaf[t + 1, others] = shared[t + 1]
        buffers.first[t + 1, others] = there.buffers.first[t + 1]
        if t + 1 == len(buffers.reward):
            for field in ("next_obs", "reward", "terminated", "truncated"):
                jax.tree.map(
                    lambda leaf, shared: np.copyto(leaf[:, others], shared[: t + 1]),
                    getattr(buffers, field),
                    getattr(there.buffers, field),
                )
            self._buffers = None
        if self._mask is not None:
            self._mask[own], self._mask[others] = self._own.mask, there.mask
        self._whole = True

    def snapshot(self) -> PoolSnapshot:
        document: dict[str, Any] = {"kind": "gymnasium", "restarts": [], "episodes": []}
        arrays: dict[str, np.ndarray] = {}
        parts = self._parts() if self._whole else None
        if parts is None:
            nothing: list[Any] = [[] for _ in range(self.num_envs)]
            return PoolSnapshot(arrays, document | {"restarts": list(self._restarts), "episodes": nothing})
        for part in parts:
            first = len(document["restarts"])
            for name in ("restarts", "episodes"):
                document[name] += part.document[name]
            arrays |= _renumbered(part.arrays, first)
        return PoolSnapshot(arrays, document)

    def restore(self, snapshot: PoolSnapshot, obs: list[np.ndarray], started_anew: np.ndarray) -> list[str]:
        for helper in self._helpers:
            helper.send(Kind.RESTORE, pack_snapshot(self._part_of(snapshot, helper.share)))
        own = self._own_share
        problems = self._own.restore(self._part_of(snapshot, own), [leaf[own] for leaf in obs], started_anew[own])
        for helper, contents in zip(self._helpers, self._answers(), strict=True):
            answer = json.loads(contents)
            problems += answer["problems"]
            started_anew[helper.share] = answer["started_anew"]
        restarts = zip(snapshot.document["restarts"], started_anew.tolist(), strict=True)
        self._restarts = [int(before) + anew for before, anew in restarts]
        self._take_start(obs)
        return problems

    def close(self) -> None:
        try:
            self._own.close()
        finally:
            self._close_helpers()

    def _parts(self) -> list[PoolSnapshot] | None:
        """The snapshot of each process; None if one has ended, which the next step tells: what was learned is good."""
        self._tell(Kind.SNAPSHOT)
        try:
            return [self._own.snapshot(), *map(unpack_snapshot, self._answers())]
        except WorkerError:
            if not any(helper.is_gone() for helper in self._helpers):
                raise
            self._whole = False
            return None

    def _close_helpers(self) -> None:
        for helper in self._helpers:
            helper.close()

    def _tell(self, kind: Kind) -> None:
        for helper in self._helpers:
            helper.send(kind)

    def _answers(self) -> list[bytes]:
        """What each process answers to what it was told last."""
        if not self._made:
            self._made = True
            for helper in self._helpers:
                helper.answer()
        return [helper.answer() for helper in self._helpers]

    def _part_of(self, snapshot: PoolSnapshot, share: slice) -> PoolSnapshot:
        """Of a snapshot of all environments that of a share.

        Raises:
            CheckpointError: it is none.
        """
        document = dict(snapshot.document)
        numbers = {f"{index}" for index in range(share.start, share.stop)}
        try:
            for name in ("restarts", "episodes"):
                if len(document[name]) != self.num_envs:
                    raise ValueError("other number of environments")
                document[name] = document[name][share]
            arrays = {name: array for name, array in snapshot.arrays.items() if name.split(".")[1] in numbers}
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise foreign_snapshot(error) from error
        return PoolSnapshot(_renumbered(arrays, -share.start), document)

    def _take_start(self, obs: list[np.ndarray]) -> None:
        """Takes in where the environments of other processes stand after `reset` or `restore`."""
        for leaf, shared in zip(obs, self._there.buffers.obs, strict=True):
            leaf[self._others] = shared[0]
        masked = [self._own.mask is not None, *self._there.masked.tolist()]
        if any(masked):
            if not all(masked):
                raise EnvironmentContractError(
                    INFO_KEY, "given", "is given by some of the environments, and not by others", ALWAYS_OR_NEVER
                )
            self._mask = np.concatenate([self._own.mask, self._there.mask])  # type: ignore[list-item]


def _memory() -> IO[bytes]:
    """An open file without a name, which lies in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("inchworm"), "r+b")
    return tempfile.TemporaryFile()


def pack_snapshot(snapshot: PoolSnapshot) -> bytes:
    """A snapshot as the contents of a message."""
    document = json.dumps(snapshot.document).encode()
    return len(document).to_bytes(_LENGTH_BYTES, "little") + document + safetensors.numpy.save(snapshot.arrays)


def unpack_snapshot(contents: bytes) -> PoolSnapshot:
    """What `pack_snapshot` packed."""
    end = _LENGTH_BYTES + int.from_bytes(contents[:_LENGTH_BYTES], "little")
    return PoolSnapshot(safetensors.numpy.load(contents[end:]), json.loads(contents[_LENGTH_BYTES:end]))


def _renumbered(arrays: dict[str, np.ndarray], by: int) -> dict[str, np.ndarray]:
    """Logged actions, whose names are `actions.{environment}.{age}`, under the numbers environments have elsewhere."""
    names = {name: name.split(".") for name in arrays}
    return {f"{kind}.{int(index) + by}.{age}": arrays[name] for name, (kind, index, age) in names.items()}
