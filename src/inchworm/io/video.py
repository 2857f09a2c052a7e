"""Frames to a video file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inchworm.errors import MissingDependencyError


def write_video(frames: Sequence[np.ndarray], path: Path, fps: int) -> None:
    """Writes an MP4.

    Raises:
        MissingDependencyError: imageio or its ffmpeg is not installed.
    """
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401  (imageio finds its writer through it)
    except ImportError as error:
        raise MissingDependencyError(
            "video", str(path), f"needs a package that is not installed: {error.name}", 'pip install "inchworm[video]".'
        ) from error
    with imageio.get_writer(path, fps=fps, macro_block_size=2, format="FFMPEG") as writer:
        for frame in frames:
            writer.append_data(frame)  # pyright: ignore[reportAttributeAccessIssue]
