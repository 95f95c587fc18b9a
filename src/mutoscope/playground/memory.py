"""Memory of a server in which sessions come and go: what a session used goes back to the system when it ends.

Streams hang in reference cycles, which Python collects late, and glibc keeps freed pages between live ones: without
this a server grows by a fifth within some hundred sessions.
"""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def short_collections() -> Iterator[None]:
    """Within, collections do not look through what existed before, above all the modules.

    One then takes milliseconds instead of a tenth of a second, in which nobody would get a frame.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def give_back_memory() -> None:
    """Collects what ended sessions left, and gives free pages to the system where its C library can (glibc)."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
