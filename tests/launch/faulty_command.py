"""The command `mstl`, whose ranks run faulty_train.py."""

from pathlib import Path

from mstl.cli import train
from mstl.cli.main import main

if __name__ == "__main__":
    train._script = lambda: str(Path(__file__).with_name("faulty_train.py"))  # type: ignore[assignment]
    main()
