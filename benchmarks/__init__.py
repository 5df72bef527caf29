"""Kernel benchmarks: every operation side by side with its peers and its ceiling, in one run."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its profiler announces every start and stop
