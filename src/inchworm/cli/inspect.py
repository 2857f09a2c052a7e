"""`inchworm inspect PATH`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from inchworm import spaces
from inchworm.cli.options import Argument, read_options
from inchworm.cli.report import Section, page
from inchworm.errors import CheckpointError, RunFolderError
from inchworm.io.checkpoint import MANIFEST, Checkpoint, list_checkpoints, load_checkpoint
from inchworm.io.policy_file import JSON, read_policy
from inchworm.io.run_folder import RunFolder, open_run_folder
from inchworm.io.words import format_return, short
from inchworm.warning import plain


@dataclass(frozen=True, kw_only=True)
class Options:
    """Prints what is in a checkpoint or a policy, every byte of which is verified. Nothing in it is run."""

    path: Annotated[Path, Argument("PATH")]
    """Folder of a checkpoint (RUN/checkpoints/000244) or of a policy (RUN/policy), or of a run, for its policy and a
    list of its checkpoints."""


def main(arguments: list[str]) -> int:
    print(plain(page(_found(read_options("inspect", Options, arguments).path))))
    return 0


def _found(path: Path) -> list[Section]:
    if (path / MANIFEST).exists():
        return _of_checkpoint(path)
    if (path / JSON).exists():
        return _of_policy(path)
    if not RunFolder(path).config.exists():
        raise RunFolderError(
            "path", str(path), "is no folder of a checkpoint, a policy or a run", "Name RUN/checkpoints/..., or RUN."
        )
    folder = open_run_folder(path)
    found = list_checkpoints(folder.checkpoints)
    sections: list[Section] = [(f"Checkpoints: {len(found) or 'none'}", [(one.name, _in_short(one)) for one in found])]
    return sections + (_of_policy(folder.policy) if folder.policy.is_dir() else [])


def _in_short(path: Path) -> str:
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        return f"damaged: {error.problem}"
    return ", ".join([f"{checkpoint.env_steps:,} steps", *_return_of(checkpoint).values()])


def _of_checkpoint(path: Path) -> list[Section]:
    checkpoint = load_checkpoint(path)
    meta = checkpoint.meta
    facts = {
        "of": f"{meta.get('env')}, {meta.get('algorithm')}",
        "after": f"{checkpoint.iteration:,} iterations, {checkpoint.env_steps:,} steps",
    }
    facts |= _return_of(checkpoint) | _spaces(meta)
    arrays = checkpoint.collector_arrays.values()
    facts["environments"] = f"{sum(array.nbytes for array in arrays):,} bytes to take them up where they stood"
    return [
        (f"Checkpoint {short(path)}", facts.items()),
        _settings(meta.get("decided_by")),
        _tensors("State", checkpoint.state),
    ]


def _return_of(checkpoint: Checkpoint) -> dict[str, str]:
    value = checkpoint.meta.get("return_100")
    return {"return": f"{format_return(value)} over the last 100 episodes"} if type(value) is float else {}


def _of_policy(path: Path) -> list[Section]:
    document, arrays = read_policy(path)
    info = document["info"]
    facts = {
        "of": f"{info.get('env')}, {info.get('algorithm')}, seed {document['seed']}",
        "after": f"{info.get('env_steps', 0):,} steps",
        **_spaces(document),
    }
    return [
        (f"Policy {short(path)}", facts.items()),
        _settings(document["model"]),
        _tensors("Parameters and statistics", arrays),
    ]


def _spaces(document: Mapping[str, Any]) -> dict[str, str]:
    try:
        spec = spaces.spec_from_json(dict(document))
    except KeyError:
        return {}
    return {
        "observations": spaces.describe(spec.observation_space),
        "actions": spaces.describe(spec.action_space),
    }


def _settings(settings: Any) -> Section:
    found = settings if isinstance(settings, dict) else {}
    rows = [(name.removeprefix("settings."), json.dumps(value)) for name, value in found.items()]
    return f"Settings: {len(rows) or 'not stored'}", rows


def _tensors(title: str, arrays: Mapping[str, np.ndarray]) -> Section:
    numbers = sum(array.size for array in arrays.values())
    rows = [(name, _tensor(array)) for name, array in arrays.items()]
    return f"{title}: {len(arrays):,} tensors, {numbers:,} numbers", rows


def _tensor(array: np.ndarray) -> str:
    """Shape, dtype and size of a tensor's numbers."""
    what = f"{' x '.join(map(str, array.shape)) or 'one number'}, {array.dtype.name}"
    if not array.size or array.dtype.kind not in "fiu":
        return what
    numbers = array.astype(np.float64)
    if array.size == 1:
        return f"{what}, {numbers.item():.6g}"
    return f"{what}, {numbers.min():.3g} to {numbers.max():.3g}, rms {np.sqrt(np.mean(numbers**2)):.3g}"
