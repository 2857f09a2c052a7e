"""Tianshou as in `peers.tianshou`, with each environment in a process of its own and shared memory."""

from functools import partial

from peers.protocol import main
from peers.tianshou import PACKAGES, train

if __name__ == "__main__":
    main("tianshou_processes", partial(train, environments="processes"), (*PACKAGES, "mujoco"))
