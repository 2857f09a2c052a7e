"""Inchworm with EnvPool's environments, stepped inside its compiled rollouts."""

from peers.ours import run_with

if __name__ == "__main__":
    run_with("ours_envpool", backend="envpool", packages=("envpool", "gymnasium"))
