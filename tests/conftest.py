"""Settings of every test: our own bugs are raised, never swallowed."""

import os

os.environ["GPUMON_STRICT"] = "1"
