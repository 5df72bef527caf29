"""How a command's process asks the system for memory."""

import ctypes
import os

# glibc's names and numbers of what mallopt sets.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_SETTINGS = {
    _M_MMAP_THRESHOLD: 2**30,
    _M_TRIM_THRESHOLD: 2**31 - 1,
    _M_TOP_PAD: 2**26,
    _M_ARENA_MAX: 1,
}


def keep_memory() -> bool:
    """Let blocks of 32 MiB to 1 GiB be reused by the process that has freed them.

    glibc maps each block of 32 MiB and more anew and gives it back when it is freed: every map of
    features that large then costs a page fault for each 4 KiB, at every operation, several times
    what the operation itself costs. Kept, they are the process's until it ends; its peak does not
    change, as all threads take from one place: what one has freed, another uses. Right for a
    command, whose process does nothing else; a library leaves its user's process alone.

    Returns:
        Whether it was set: not with another C library, nor where the environment has settings of
        its own (MALLOC_*_ or GLIBC_TUNABLES).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, value) == 1 for name, value in _SETTINGS.items())
