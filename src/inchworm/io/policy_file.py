"""A trained policy on disk: one folder that holds all that is needed to act.

policy/policy.json          spaces, model settings, where it comes from, hash of the tensors, and its own
policy/policy.safetensors   parameters and observation statistics by name

While a policy takes the place of another, its tensors lie beside the other's as policy.safetensors.new, until the JSON
that vouches for them is there: at any moment the folder holds the whole of one of the two.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from inchworm import spaces
from inchworm.checks import check_integer, check_path
from inchworm.errors import CheckpointError, ConfigError, RunFolderError
from inchworm.io.files import (
    FAILURES,
    check_finite,
    describe_tensors,
    parse_object,
    parse_sealed,
    parse_tensors,
    plain_arrays,
    read_file,
    replace_file,
    sealed,
    sync_folder,
)
from inchworm.models import observations
from inchworm.models.actor_critic import make_model
from inchworm.models.network import CustomEncoder, CustomNetwork
from inchworm.models.policy import Policy
from inchworm.models.settings import ModelSettings, to_json
from inchworm.numerics.tree import from_arrays, to_arrays
from inchworm.spaces import EnvSpec

FORMAT = 2
JSON, TENSORS, NEW_TENSORS = "policy.json", "policy.safetensors", "policy.safetensors.new"


def save_policy(folder: str | Path, policy: Policy) -> None:
    """Writes the policy, so that a crash leaves this one or the one that was there before.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    folder = check_path("folder", folder)
    if not isinstance(policy, Policy):
        raise ConfigError("policy", repr(policy), "is no policy", "Give a run's, run.policy.")
    model = policy.model
    arrays = plain_arrays(to_arrays({"model": model, "obs_stats": policy.obs_stats}))
    tensors = safetensors.numpy.save(arrays)
    document = {
        "format": FORMAT,
        **spaces.spec_to_json(EnvSpec(model.observation_space, model.action_space)),
        "model": to_json(policy.settings, ModelSettings),
        "custom_network": isinstance(model.reader.encoder, CustomEncoder),
        "normalized": any(stats is not None for stats in policy.obs_stats),
        "tensors": describe_tensors(arrays),
        "seed": policy.seed,
        "size": len(tensors),
        "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
        "info": policy.info,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / NEW_TENSORS, tensors)
        replace_file(folder / JSON, sealed(json.dumps(document, indent=2).encode().removesuffix(b"\n}")))
        os.replace(folder / NEW_TENSORS, folder / TENSORS)
        sync_folder(folder)
    except OSError as error:
        raise RunFolderError(
            "policy", str(folder), f"cannot be written: {error.strerror}", "Free space or choose another folder."
        ) from error


def load_policy(folder: str | Path, *, network: CustomNetwork | None = None) -> Policy:
    """Reads a policy; nothing in the files is executed.

    `network` is needed again where the policy has one of your own.

    Raises:
        CheckpointError: the files are missing, damaged or of another version.
    """
    folder, fix = check_path("folder", folder), "Name another policy's folder."
    if not (folder / JSON).exists() and (folder / "policy" / JSON).exists():
        fix = f"It is a run's folder: name {folder / 'policy'}, or take iw.load(...).policy."
    with _loading(folder, fix):
        document, arrays = _read(folder)
        settings = ModelSettings(**document["model"])
        if document["custom_network"] and network is None:
            raise CheckpointError(
                "policy",
                str(folder),
                "has a network of your own, which is code and not stored",
                "Give the network again, as network=make_network.",
            )
        spec, normalized = spaces.spec_from_json(document), bool(document["normalized"])
        tree = from_arrays(policy_template(spec, settings, normalized, network), arrays)
    return Policy(tree["model"], tree["obs_stats"], settings, document["seed"], document["info"])


def read_policy(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON of a policy, and the tensors that it vouches for by their names; no policy is made of them.

    Raises:
        CheckpointError: the files are missing, damaged or of another version.
    """
    with _loading(folder, "Name another policy's folder."):
        return _read(folder)


@contextlib.contextmanager
def _loading(folder: Path, fix: str) -> Iterator[None]:
    """Inside it whatever damaged files lead to is a `CheckpointError`."""
    try:
        yield
    except (*FAILURES, LookupError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            "policy", str(folder), f"cannot be loaded: {error or type(error).__name__}", fix
        ) from error


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """As `read_policy`, but raises one of many kinds of errors."""
    document, data = _read_files(folder)
    arrays = parse_tensors(TENSORS, data, document["tensors"])
    check_finite(TENSORS, arrays)
    document["seed"] = check_integer("seed", document["seed"], 0, 2**32 - 1)
    info, kinds = document["info"], {"env": str, "algorithm": str, "env_steps": int}
    if type(info) is not dict or any(type(info.get(name, kind())) is not kind for name, kind in kinds.items()):
        raise ValueError("it does not say where it comes from")
    return document, arrays


def _read_files(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON of a policy and the bytes of the tensors that it vouches for.

    Raises:
        OSError, ValueError, KeyError: they are not there, or damaged.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        document = parse_object(JSON, data := read_file(descriptor, JSON, None))
        if document["format"] != FORMAT:
            raise ValueError(f"its format version is {document['format']!r}, this version reads {FORMAT}")
        document = parse_sealed(JSON, data)
        problem: Exception | None = None
        for name in (TENSORS, NEW_TENSORS):
            try:
                tensors = read_file(descriptor, name, document["size"])
                if hashlib.sha256(tensors).hexdigest() == document["tensors_sha256"]:
                    return document, tensors
                raise ValueError(f"{name} is damaged, its SHA-256 is not the one in {JSON}")
            except (OSError, ValueError) as error:
                problem = problem or error
    finally:
        os.close(descriptor)
    assert problem is not None
    raise problem


def policy_template(spec: EnvSpec, settings: ModelSettings, normalized: bool, network: CustomNetwork | None) -> Any:
    """Shapes and dtypes of a policy's parameters, `model`, and statistics, `obs_stats`."""

    def build(key: jax.Array) -> Any:
        model = make_model(key, spec, settings, network)
        return {"model": model, "obs_stats": observations.empty_stats(spec.observation_space, normalized)}

    return jax.eval_shape(build, jax.random.key(0))
