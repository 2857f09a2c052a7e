"""Does one update of TRPO do what sb3-contrib's does? Both, from the same parameters, on the same rollout.

    python experiments/trpo/one_update.py Hopper-v5

The peer trains for nine updates and writes down its tenth: rollout, parameters before and after. Ours is then taken
from the same parameters with `max_kl` and damping as they are, and with both multiplied by the dimensions of an action.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from run import HERE, PER_ACTION_DIMENSION, SETTINGS, install_group

import inchworm as iw
from inchworm.algorithms.trpo import fisher_vector_product, surrogate_and_kl, trust_region_step
from inchworm.models.heads import GaussianHead
from inchworm.models.mlp import MLP
from inchworm.numerics.tree import broadcast_rows
from inchworm.rl.diagnostics import standardize
from inchworm.types import Batch

LAYERS = ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net")
UPDATE = 10


def policy(document: dict[str, np.ndarray], when: str) -> tuple[MLP, Any]:
    """The peer's policy `before` or `after` its update: a network of means, and log-deviations."""
    weights = tuple(jnp.asarray(document[f"{when}.{layer}.weight"].T) for layer in LAYERS)
    biases = tuple(jnp.asarray(document[f"{when}.{layer}.bias"]) for layer in LAYERS)
    return MLP(weights, biases, "tanh"), jnp.asarray(document[f"{when}.log_std"])


def main(env: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "update.npz"
        command = [str(install_group(Path(sys.executable), "torch")), str(HERE / "sb3_contrib_peer.py"), env]
        command += ["--seed", "0", "--settings", json.dumps(SETTINGS), "--out", str(file), "--update", str(UPDATE)]
        subprocess.run(command, check=True)
        with np.load(file) as stored:
            document = dict(stored)
    obs, actions, log_probs, advantages = (
        jnp.asarray(document[name].reshape(SETTINGS["horizon"], *document[name].shape[2:]))
        for name in ("observations", "actions", "log_probs", "advantages")
    )
    before, theirs = policy(document, "before"), policy(document, "after")
    weight = jnp.ones(len(obs))
    dimensions = actions.shape[1]
    head = GaussianHead(dimensions, before[1], True, False)

    def distribution_of(policy: Any) -> Any:
        network, log_std = policy
        return broadcast_rows(replace(head, log_std=log_std)(network(obs), None), weight.shape)

    batch = Batch(
        obs=obs,
        first=None,  # type: ignore[arg-type]  # not read without memory
        action=actions,
        mask=None,
        carry=None,
        log_prob=log_probs,
        advantage=standardize(advantages, weight),
        value=None,  # type: ignore[arg-type]
        returns=None,  # type: ignore[arg-type]
        weight=weight,
        old=distribution_of(before),
    )

    def flat(policy: Any) -> np.ndarray:
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(policy)])

    def report(name: str, after: Any) -> None:
        gain, kl = surrogate_and_kl(distribution_of(after), batch)
        away = np.linalg.norm(flat(after) - flat(theirs)) / np.linalg.norm(flat(theirs) - flat(before))
        print(f"{name:<40} KL {kl:.5f}, surrogate {gain:.5f}, {100 * away:.3f} % of its step from sb3-contrib's")

    report("sb3-contrib, max_kl 0.01, damping 0.1", theirs)
    for factor in (1, dimensions):
        scaled = {name: SETTINGS[name] * factor for name in PER_ACTION_DIMENSION}
        step = trust_region_step(
            before,  # type: ignore[arg-type]  # any tree of arrays will do
            lambda policy: surrogate_and_kl(distribution_of(policy), batch),
            fisher_vector_product(before, distribution_of, weight),  # type: ignore[arg-type]
            jnp.float32(scaled["max_kl"]),
            iw.TRPO(**(SETTINGS | scaled)),
        )
        report(f"Inchworm, max_kl {scaled['max_kl']:g}, damping {scaled['cg_damping']:g}", step.search.point)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One update of TRPO beside sb3-contrib's on the same rollout.")
    parser.add_argument("env")
    main(parser.parse_args().env)
