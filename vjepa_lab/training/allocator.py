"""What the C library does with freed memory."""

import ctypes
import os
import sys
from functools import lru_cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_KEPT, MOST_KEPT = 32 * 2**20, 2**30  # bytes; the first is the most that glibc takes


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Let this process keep freed memory, up to 1 GiB at the heap's end, for the next step; True where the C library can (glibc).

    By default glibc gives large blocks back to the system at once, which hands them out again page by page, zeroed, in each CPU training
    step (docs/performance.md has what that costs). Left alone where a MALLOC_ variable of the environment says how memory is to be kept.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(M_TRIM_THRESHOLD, MOST_KEPT))
