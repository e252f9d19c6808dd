"""The store that docs/cli.md shows: made by processes that have ended, one of them killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SHMSTORE = Path(sys.executable).with_name("shmstore")
DEADLINE_S = 60.0

_MADE = """
import os, signal, sys
import numpy as np, pandas as pd, pyarrow as pa
import shmstore
from shmstore import crashpoints

class Model:
    def __init__(self): self.weights = [1.0, 2.0]

store = shmstore.Store(sys.argv[1])
flights = pa.table({
    "carrier": ["AA", "BA", None, "LH", "AA", "BA"] * 1000,
    "delay": pa.array([3, None, 11, 0, 7, 25] * 1000, pa.int32()),
    "distance": [1089.0, 3451.5, 213.0, 4012.0, 1089.0, 3451.5] * 1000,
})
store.put("etl", "flights", flights)
store.put("etl", "delays", np.arange(60_000, dtype=np.float64).reshape(300, 200), deps=["flights"])
means = pd.DataFrame({"mean": [5.0, 25.0, 0.0]}, index=["AA", "BA", "LH"])
store.put("etl", "mean/carrier", means, deps=["flights", "delays"])
store.put("etl", "summary", {"rows": 6000, "carriers": ["AA", "BA", "LH"]}, deps=["mean/carrier"])
store.put("etl", "scratch", 1)
store.put("etl", "scratch", 2)
store.delete("etl", "scratch")
store.put("odd\\n\\x1b[31mname", "a/b\\u202ec", b"x" * 100)
pickled = sys.modules["importable_model"] = type(sys)("importable_model")
Model.__module__ = "importable_model"
pickled.Model = Model
store.put("models", "fitted", Model())
crashpoints.hook = lambda name: name == "commit:named" and os.kill(os.getpid(), signal.SIGKILL)
store.put("etl", "lost", np.zeros(100_000))
"""


def make(root: str) -> None:
    """Makes it in a process that ends by SIGKILL in the middle of a put."""
    done = subprocess.run(
        [sys.executable, "-c", _MADE, root], check=False, capture_output=True, timeout=DEADLINE_S
    )
    assert done.returncode == -9, done.stderr


def call(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a script does; nobody can be asked."""
    return subprocess.run(
        [SHMSTORE, *args],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": "80", "TZ": "UTC"} | environment,
    )
