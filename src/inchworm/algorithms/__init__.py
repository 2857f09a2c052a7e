"""How parameters move: one file an algorithm, each a frozen configuration and two pure functions.

Algorithms know no environment, file, clock or log.
"""
