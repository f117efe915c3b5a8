"""Memory that torch frees is reused for its next tensor, without new pages."""

import platform
import subprocess
import sys

import pytest

LOOP = """
import resource, torch
from privacy_gate.compute.machine.allocator import keep_freed_memory
if {kept}:
    keep_freed_memory()
x = torch.ones(1 << 24)
for turn in range(12):
    if turn == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    y = x + 1  # as in a network: a layer's output is freed once the next one's exists
    y = y + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_large_tensors_reuse_freed_memory() -> None:
    """64 MiB are 16,384 pages of 4 KiB."""
    made, kept = (
        int(subprocess.run([sys.executable, "-c", LOOP.format(kept=kept)], capture_output=True, check=True).stdout)
        for kept in (False, True)
    )
    assert kept < made / 2
