"""How threads wait for work: asleep, so that programs can share a machine.

Between two operations, OpenMP's threads spin for milliseconds, in the hope of more work. Beside another program they
take the processor from the thread that would bring it: two programs with two threads each on two cores make each other
many times slower (docs/speed.md). The runtimes read these settings once, when torch is loaded, so they have to be set
before.
"""

import os
import sys
from collections.abc import MutableMapping

# libgomp (torch on Linux) reads OMP_WAIT_POLICY; its own choice is to spin for 3 ms. LLVM's and Intel's libomp (macOS,
# Windows) read KMP_BLOCKTIME, the milliseconds before a thread sleeps; their own choice is 200.
ASLEEP = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
CHOICES = {*ASLEEP, "GOMP_SPINCOUNT"}  # any of them says that the user has chosen


def share_processors(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let the threads of this process, and of those it starts, sleep while they wait.

    Does nothing if one of `CHOICES` is set, or torch is loaded already: then a program uses this package, and its
    environment is its own.
    """
    if "torch" not in sys.modules and not CHOICES & environment.keys():
        environment.update(ASLEEP)
