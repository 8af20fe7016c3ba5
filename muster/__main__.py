"""`python -m muster`: the command where no script is installed."""

from muster.cli import main

main()
