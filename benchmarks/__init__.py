"""Kernel benchmarks: every operation side by side with its peers and its ceiling, in one run."""

import os

# Before torch starts its threads: where cores are shared, idle ones that spin keep the others from
# working.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its profiler announces every start and stop
