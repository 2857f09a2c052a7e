"""Stable-Baselines3 as in `peers.sb3`, with each environment in a process of its own (SubprocVecEnv)."""

from functools import partial

from peers.protocol import main
from peers.sb3 import PACKAGES, train

if __name__ == "__main__":
    main("sb3_processes", partial(train, processes=True), PACKAGES)
