"""What torch frees is there for its next tensor, without a page made anew."""

import platform
import subprocess
import sys

import pytest

LOOP = """
import resource, torch
from privacy_gate.compute.allocator import keep_freed_memory
if {kept}:
    keep_freed_memory()
x = torch.ones(1 << 24)
for turn in range(10):
    if turn == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_large_tensors_take_the_place_of_those_that_were_freed() -> None:
    """64 MiB are 16,384 pages, of whatever size."""
    made, kept = (
        int(subprocess.run([sys.executable, "-c", LOOP.format(kept=kept)], capture_output=True, check=True).stdout)
        for kept in (False, True)
    )
    assert kept < made / 10
