"""Start the command line as `python -m alignctl`."""

from alignctl.cli import main

main()
