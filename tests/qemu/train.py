"""A training without a framework: reads the files of FOLDER as batches until STOP exists. train.py FOLDER RUN STOP"""

import itertools
import sys
import time
from pathlib import Path

import gpumon

folder, run, stop = map(Path, sys.argv[1:])
gpumon.instrument("train", run_dir=run, data_paths=[folder])
files = itertools.cycle(sorted(folder.iterdir()))
for content in gpumon.steps(file.read_bytes() for file in files):
    with gpumon.phase("compute"):
        sum(content[::4096])
        time.sleep(0.2)
    if stop.exists():
        break
gpumon.uninstrument()
