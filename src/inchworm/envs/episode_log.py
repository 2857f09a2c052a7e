"""How to live an episode again: how it began, the actions since, and a checksum of all the environment answered.

Steps are taken in a rollout at a time, because a few calls for each of them would cost a third of a fast environment.
"""

import zlib
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from jaxtyping import UInt8

from inchworm.envs.pool import StepBuffers

MAX_REPLAY_STEPS = 100_000
"""An episode longer than this is not replayed at a resume; the resumed run says so."""


@dataclass
class EpisodeLog:
    """How to live one episode again."""

    start: dict[str, Any]
    """Either {"seed": s}, for a seeded reset, or {"generator": state}, for the generator before a plain one."""
    actions: bytearray = field(default_factory=bytearray)
    """For each step the bytes of its leaves, one after the other."""
    length: int = 0
    checksum: int = 0
    """CRC-32 over every observation, reward, flag and mask, as a rollout keeps them."""
    complete: bool = True
    """False once the episode has grown too long to be kept."""

    def add(self, actions: UInt8[np.ndarray, "steps _"], answers: UInt8[np.ndarray, "steps _"]) -> None:
        """Takes in steps, by the bytes of their actions and of what the environment answered."""
        if not self.complete:
            return
        self.length += len(actions)
        if self.length > MAX_REPLAY_STEPS:
            self.complete, self.actions = False, bytearray()
            return
        self.actions += actions.tobytes()
        self.checksum = zlib.crc32(answers.tobytes(), self.checksum)


def checksum(leaves: list[np.ndarray]) -> int:
    """CRC-32 over arrays."""
    found = 0
    for leaf in leaves:
        found = zlib.crc32(leaf.tobytes(), found)
    return found


class OpenRows:
    """Steps of N environments side by side that are not in the logs of their episodes yet."""

    def __init__(self, buffers: StepBuffers, t: int) -> None:
        """Takes the buffers that the steps fill, and the row of the first."""
        self._buffers, self._first = buffers, t
        self._actions: list[list[bytes]] = []
        self._masks: list[np.ndarray] = []
        self._ended: list[tuple[int, int, EpisodeLog]] = []

    def goes_on(self, buffers: StepBuffers, t: int) -> bool:
        """Whether a step that fills this row is the next."""
        return self._buffers is buffers and self._first + len(self._actions) == t

    def add_actions(self, actions: list[np.ndarray]) -> None:
        """Begins a step with leaves (N, ...): before they are sent, because environments may write into them."""
        self._actions.append([leaf.tobytes() for leaf in actions])

    def add_masks(self, masks: np.ndarray | None) -> None:
        """The masks (N, num_mask_columns) that came with the step's observations."""
        if masks is not None:
            self._masks.append(masks.copy())

    def end(self, index: int, log: EpisodeLog) -> None:
        """An environment's episode has ended with the last step."""
        self._ended.append((index, len(self._actions), log))

    def write(self, running: list[EpisodeLog]) -> None:
        """Takes the steps into the logs of the episodes that have ended, and of every environment's running one."""
        steps, num_envs = len(self._actions), len(running)
        rows, buffers = slice(self._first, self._first + steps), self._buffers
        columns = [np.frombuffer(b"".join(leaf), np.uint8) for leaf in zip(*self._actions, strict=True)]
        actions = _side_by_side([leaf.reshape((steps, num_envs, leaf.size // (steps * num_envs))) for leaf in columns])
        answered = [*buffers.next_obs, buffers.reward, buffers.terminated, buffers.truncated]
        answers = _side_by_side([leaf[rows] for leaf in answered] + ([np.stack(self._masks)] if self._masks else []))
        begun = [0] * num_envs
        for index, end, log in [*self._ended, *((index, steps, log) for index, log in enumerate(running))]:
            log.add(actions[index, begun[index] : end], answers[index, begun[index] : end])
            begun[index] = end


def _side_by_side(leaves: list[np.ndarray]) -> UInt8[np.ndarray, "N T bytes"]:
    """The bytes of leaves (T, N, ...), for each step those of one leaf after the other's."""
    flat = [np.ascontiguousarray(leaf).reshape((*leaf.shape[:2], prod(leaf.shape[2:]))) for leaf in leaves]
    return np.concatenate([leaf.view(np.uint8) for leaf in flat], axis=-1).swapaxes(0, 1)
