"""Tianshou as in `peers.tianshou`, on EnvPool."""

from functools import partial

from peers.protocol import main
from peers.tianshou import PACKAGES, train

if __name__ == "__main__":
    main("tianshou_envpool", partial(train, environments="envpool"), (*PACKAGES, "envpool"))
