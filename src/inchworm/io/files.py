"""Files that may be cut short, damaged or hostile: written durably, read without running anything.

What all files of a run share: none is opened through a link, none is read that is no regular file or larger than it may
be, JSON is held to strict rules and tensors to their description.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

MAX_JSON_BYTES = 16 << 20
MAX_JSON_DEPTH = 64
MAX_WAITING = 100_000
"""Records that are kept for a disk that does not take them."""

NUMPY_DTYPES = {
    "BOOL": "bool", "F16": "float16", "F32": "float32", "F64": "float64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
}  # fmt: skip
"""The dtypes that files hold, by their names in safetensors."""

FAILURES = (OSError, ValueError, TypeError, OverflowError, RecursionError, MemoryError, safetensors.SafetensorError)
"""What hostile files and unsuitable values can raise here and in the libraries called."""

_SEAL = b',"sha256":"%s"}'
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def write_file(path: Path, data: bytes) -> None:
    """Writes a new file and waits until the disk has it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of it, however little is taken at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file so that it is the old one or the new one, never half of either."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        write_file(temporary, data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class RecordFile:
    """A file that grows by whole records; those that the disk does not take wait for it."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it."""
        self._descriptor = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._end = os.fstat(self._descriptor).st_size
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)

    def append(self, record: bytes) -> None:
        """Writes what waits, and then a record.

        Raises:
            OSError: the disk does not take it, yet.
        """
        self._waiting.append(record)
        try:
            while self._waiting:
                write_all(self._descriptor, self._waiting[0])
                self._end += len(self._waiting.popleft())
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._end)  # half a record would make the next one unreadable
            raise

    def close(self) -> None:
        with contextlib.suppress(OSError):  # which `append` has told of
            os.close(self._descriptor)


def sync_folder(folder: Path) -> None:
    """Waits until the disk has a folder's entries."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def open_own(path: str | Path, flags: int = os.O_RDONLY, folder: int | None = None) -> int:
    """A descriptor of a file of a run's own: not of what a link leads to, and of no pipe or device.

    Args:
        path: of the file, from the folder if one is given.
        flags: as for `os.open`.
        folder: descriptor of its folder.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is a link, or no regular file.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{Path(path).name} is a link, and nothing of a run is opened through one") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{Path(path).name} is not a regular file")
    return descriptor


def read_file(folder: int | None, name: str | Path, size: int | None) -> bytes:
    """The bytes of a regular file, which must have `size` of them; with None as many as JSON may have."""
    with open(open_own(name, folder=folder), "rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found > MAX_JSON_BYTES if size is None else found != size:
            wanted = f"at most {MAX_JSON_BYTES}" if size is None else f"the manifest's {size}"
            raise ValueError(f"{Path(name).name} has {found} bytes, not {wanted}")
        return file.read(found)


def sealed(body: bytes) -> bytes:
    """A JSON object that lacks its last brace, closed by its own hash: no other file vouches for it."""
    return body + _SEAL % hashlib.sha256(body).hexdigest().encode()


def parse_sealed(what: str, data: bytes) -> dict[str, Any]:
    """The object in what `sealed` has made, with its hash as `sha256`; `ValueError` where anything was changed."""
    if sealed(data[: -len(sealed(b""))]) != data:
        raise ValueError(f"{what} is cut or damaged, it does not end in its own SHA-256")
    return parse_object(what, data)


def finite_or_null(document: Any) -> Any:
    """The document with null for NaN and infinity, which JSON has no word for."""
    if isinstance(document, dict):
        return {name: finite_or_null(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [finite_or_null(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document


def parse_object(what: str, data: bytes) -> dict[str, Any]:
    """A JSON object; ValueError for anything else.

    Strict but for NaN and Infinity, which Python writes too; bounded in size and depth, no key twice.
    """
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"{what} holds {len(data)} bytes of JSON, more than {MAX_JSON_BYTES}")
    try:
        depth = 0
        for bracket in _STRING.sub(b"", data).translate(None, _NO_BRACKETS):
            depth += 1 if bracket in b"[{" else -1
            if depth > MAX_JSON_DEPTH:
                raise ValueError(f"nested deeper than {MAX_JSON_DEPTH}")
        value = json.loads(data.decode(), object_pairs_hook=_unique_keys)
    except ValueError as error:
        raise ValueError(f"{what} is not good JSON: {error}") from error
    if type(value) is not dict:
        raise ValueError(f"{what} holds {type(value).__name__} instead of an object")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return unique


def plain_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays in the layout that safetensors takes for granted without checking."""
    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    for name, array in plain.items():
        if array.dtype.name not in NUMPY_DTYPES.values():
            raise ValueError(f"{name!r} has dtype {array.dtype}, checkpoints hold {', '.join(NUMPY_DTYPES.values())}")
    return plain


def check_finite(file: str, arrays: dict[str, np.ndarray]) -> None:
    """`ValueError` if a tensor of floats holds NaN or infinity, from which nothing could go on."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{file}: tensor {name!r} holds NaN or infinity")


def describe_tensors(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Dtype and shape of each tensor, as JSON."""
    return {name: {"dtype": array.dtype.name, "shape": array.shape} for name, array in arrays.items()}


def parse_tensors(file: str, data: bytes, described: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays in a safetensors file; ValueError unless they are those that the manifest describes."""
    # safetensors takes the last of two equal names; its header is JSON after a length of eight bytes.
    parse_object(f"{file}'s header", data[8 : 8 + int.from_bytes(data[:8], "little")])
    arrays = {}
    for name, tensor in safetensors.deserialize(data):
        dtype = NUMPY_DTYPES.get(tensor["dtype"])
        if dtype is None:
            raise ValueError(f"{file}: tensor {name!r} has the unsupported dtype {tensor['dtype']}")
        arrays[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    found = describe_tensors(arrays)
    for name in sorted({*found, *described}):
        # Compared as JSON, in which 1, 1.0 and true differ.
        got, expected = (json.dumps(tensors.get(name), sort_keys=True) for tensors in (found, described))
        if name not in found or got != expected:
            raise ValueError(f"{file}: tensor {name!r} is {got}, the manifest describes {expected}")
    return {name: arrays[name] for name in described}
