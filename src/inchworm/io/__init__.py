"""Files of a run: checkpoints, logs and where results came from."""
