"""SBX as in `peers.sbx`, with each environment in a process of its own (SubprocVecEnv)."""

from functools import partial

from peers.protocol import main
from peers.sbx import PACKAGES, train

if __name__ == "__main__":
    main("sbx_processes", partial(train, processes=True), PACKAGES)
