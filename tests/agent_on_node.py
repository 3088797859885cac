"""`gpumon agent` whose processes, jobs and pods are those of a made-up tree, see `fakenode`.

python agent_on_node.py ROOT --socket …
"""

import sys

from gpumon.cli import main
from gpumon.collectors.holder import HolderCollector

if __name__ == "__main__":
    HolderCollector.__init__.__kwdefaults__["root"] = sys.argv[1]
    sys.exit(main(["agent", *sys.argv[2:]]))
