"""Inchworm as in `peers.ours`, with its environments divided between as many processes as there are cores."""

import os
from functools import partial

from peers.ours import PACKAGES, train
from peers.protocol import main

if __name__ == "__main__":
    train_divided = partial(train, env_processes=len(os.sched_getaffinity(0)))
    main("ours_processes", train_divided, (*PACKAGES, "gymnasium", "mujoco"))
