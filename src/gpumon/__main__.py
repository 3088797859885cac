"""`python -m gpumon`: the command line, also where its script is not on the PATH."""

from gpumon.cli import main

main()
