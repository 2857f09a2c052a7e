"""A worker for test_workers.py that does what it is told."""

import os
import signal
import sys
import time
from pathlib import Path

from inchworm.errors import CheckpointError, NonFiniteError
from inchworm.workers import serve


def work(call, report, note):
    print("what a worker prints is no answer")
    match call["do"]:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fail":
            raise NonFiniteError("nothing is finite")
        case "refuse":
            raise CheckpointError("tensor", {1, 2}, "is a set", "Take another.")
        case "break":
            return 1 / 0
        case "wait":
            Path(call["note"]).write_text(str(os.getpid()))
            time.sleep(600)
    report(10.0 * call["value"], None)
    return call["value"] ** 2


if __name__ == "__main__":
    sys.exit(serve(work))
