"""Small damages of files: values of JSON and headers of tensors that are other than they should be."""

import json

import numpy as np

NASTY = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, 1.0, 0.5, 1e308, float("nan"), float("-inf"), "", "2",
    "__import__('os')",
    "\ud800", "\0", "../x", [], [[]], {}, {"": None}, {"a": [{}]}, ["F32"], "F32", "float32", "BF16",
    [0], [2**40, 2**40], [2, 0],
]  # fmt: skip


def mutated(value: object, rng: np.random.Generator) -> object:
    """The JSON value with one random part replaced, removed, renamed or doubled."""
    value = json.loads(json.dumps(value))
    parent, key, at = None, None, value
    while isinstance(at, dict | list) and at and (parent is None or rng.random() < 0.85):
        parent, key = at, (list(at) if isinstance(at, dict) else range(len(at)))[rng.integers(len(at))]
        at = at[key]
    nasty = NASTY[rng.integers(len(NASTY))]
    if parent is None:
        return nasty
    match rng.integers(4):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[str(nasty)] = at
        case _:
            parent[key] = nasty
    return value


def tensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of a header, its own length before it or another, and the tensors' bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def mutated_tensors(file: bytes, rng: np.random.Generator) -> bytes:
    """The safetensors file with its header mutated, bytes overwritten, or cut."""
    length = int.from_bytes(file[:8], "little")
    if rng.random() < 0.7:
        file = tensors(mutated(json.loads(file[8 : 8 + length]), rng), file[8 + length :])
    damaged = bytearray(file)
    for _ in range(rng.integers(3)):
        damaged[rng.integers(len(damaged))] = rng.integers(256)
    return bytes(damaged[: rng.integers(len(damaged))] if rng.random() < 0.1 else damaged)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with some overwritten, cut out, doubled or left off."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        start, end = sorted(rng.integers(0, len(changed) + 1, size=2))
        match rng.integers(4):
            case 0 if changed:
                changed[rng.integers(len(changed))] = rng.integers(256)
            case 1:
                del changed[start:end]
            case 2:
                changed[start:start] = changed[start : start + 50]
            case _:
                changed = changed[: max(end, 1)]
        changed = changed or bytearray(b"{")
    return bytes(changed)
