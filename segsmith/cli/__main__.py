"""`python -m segsmith.cli`."""

from segsmith.cli import main

main()
