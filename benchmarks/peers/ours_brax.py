"""Inchworm with Brax's environments: rollouts and updates in one compiled program."""

from peers.ours import run_with

if __name__ == "__main__":
    run_with("ours_brax", backend="brax", packages=("brax",))
