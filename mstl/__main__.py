"""`python -m mstl` is the `mstl` command."""

from mstl.cli.main import main

main()
