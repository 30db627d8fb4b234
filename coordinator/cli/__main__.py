"""`python -m halfmsg.coordinator.cli`: the command line without its script."""

from . import main

main()
