"""How the C library's malloc treats freed memory."""

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's numbers
LARGEST_BLOCK = 32 << 20  # bytes; larger ones are mapped and unmapped one by one (and glibc before 2.35 takes no more)
LARGEST_REST = 256 << 20  # bytes that may lie free at the end of the heap


@cache
def keep_freed_memory() -> None:
    """Let glibc's malloc keep freed tensors of a few megabytes for the next ones; other C libraries stay as they are.

    Otherwise each intermediate result of an update, a plan or a policy's step costs page faults: a tenth to a third of
    its time on a CPU. The process keeps at most about LARGEST_REST more than it needs.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(M_TRIM_THRESHOLD, LARGEST_REST)
