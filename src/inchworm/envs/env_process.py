"""The program of a process that steps a share of a run's Gymnasium environments, see `process_pool`."""

import contextlib
import json
import os
import signal
import sys
import time
from threading import Thread
from typing import Any

import numpy as np

from inchworm import spaces
from inchworm.envs.gymnasium import GymnasiumPool
from inchworm.envs.making import Factory
from inchworm.envs.process_pool import Channel, Kind, SharedRows, pack_snapshot, unpack_snapshot
from inchworm.envs.source import env_referred
from inchworm.errors import EnvironmentContractError
from inchworm.signals import TO_STOP
from inchworm.workers import PATIENCE_SECONDS, error_to_json, own_stdin, own_stdout


class Share:
    """The environments of this process, and the rows they fill."""

    def __init__(self, call: dict[str, Any]) -> None:
        sys.argv = call["argv"]  # which a script may read when it is imported
        spec = spaces.spec_from_json(call["spec"])
        first, last = call["first"], call["last"]
        rows = SharedRows.in_memory(spec, call["horizon"], call["num_envs"], call["file"])
        self.rows = rows.of(slice(first, last))
        os.close(call["file"])
        self.pool = GymnasiumPool(Factory(env_referred(call["env"]), call["kwargs"]), last - first, call["seed"], first)
        if self.pool.spec != spec:
            raise EnvironmentContractError(
                "env",
                repr(self.pool.spec),
                f"are the spaces of environment {first}, which differ from those of environment 0, {spec!r}",
                "Make them alike.",
            )

    def do(self, kind: Kind, contents: bytes) -> bytes:
        """What a message asks for; returns the contents of the answer."""
        buffers = self.rows.buffers
        match kind:
            case Kind.STEP:
                # Copies, because environments may keep or change what they are sent.
                self.pool.step([leaf.copy() for leaf in self.rows.actions], int(self.rows.t), buffers)
                if self.pool.mask is not None:
                    self.rows.mask[...] = self.pool.mask
            case Kind.RESET:
                self.pool.reset([leaf[0] for leaf in buffers.obs])
                self._tell_masks()
            case Kind.SNAPSHOT:
                return pack_snapshot(self.pool.snapshot())
            case Kind.RESTORE:
                started_anew = np.zeros(self.pool.num_envs, bool)
                current = [leaf[0] for leaf in buffers.obs]
                problems = self.pool.restore(unpack_snapshot(contents), current, started_anew)
                self._tell_masks()
                return json.dumps({"problems": problems, "started_anew": started_anew.tolist()}).encode()
        return b""

    def _tell_masks(self) -> None:
        self.rows.masked[...] = self.pool.mask is not None
        if self.pool.mask is not None:
            self.rows.mask[...] = self.pool.mask


def main() -> int:
    """Answers until there is nobody to answer to."""
    incoming = own_stdin()
    for number in TO_STOP:
        # Whoever stops the run stops the parent, which still needs this process for its last checkpoint; and a handler,
        # unlike SIG_IGN, is not inherited by what environments start.
        signal.signal(number, lambda *_: None)
    parent = os.getppid()
    channel = Channel(incoming, own_stdout(), lambda: os.getppid() != parent)
    Thread(target=_end_after, args=[parent], daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        _, call = channel.receive()
        try:
            share = Share(json.loads(call))
        except Exception as error:
            _tell_failure(channel, error)
            return 1
        channel.send(Kind.DONE)
        with contextlib.closing(share.pool):
            while True:
                message = channel.receive()
                try:
                    answer = share.do(*message)
                except Exception as error:
                    _tell_failure(channel, error)
                else:
                    channel.send(Kind.DONE, answer)
    return 0


def _end_after(parent: int) -> None:
    """Ends this process some time after its parent, even where an environment does not return."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(PATIENCE_SECONDS)
    os._exit(1)


def _tell_failure(channel: Channel, error: Exception) -> None:
    channel.send(Kind.FAILED, json.dumps(error_to_json(error)).encode())


if __name__ == "__main__":
    sys.exit(main())
