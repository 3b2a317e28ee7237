"""RLHF Lab: the helper package. No screen, no notebook; importable in a script.

Importing `rlhf_lab` sets passive waiting for OpenMP threads, because spinning threads ruin a laptop that also runs
a browser. It takes effect only when torch has not been imported yet.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__version__ = "0.1.0"
