"""What keeping freed memory saves, in page faults of a process of its own."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from gq.threads import keep_freed_memory
if {keep}:
    keep_freed_memory()
blocks = [bytearray(b"x") * (3 << 20) for _ in range(30)]
del blocks
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks = [bytearray(b"x") * (3 << 20) for _ in range(30)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*, keep: bool) -> int:
    program = PROGRAM.format(keep=keep)
    return int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
def test_freed_memory_is_there_for_the_next_blocks() -> None:
    assert page_faults(keep=False) > 10_000, "90 MB in pages of 4 KB"
    assert page_faults(keep=True) < 2_000
