"""The one error boundary of every command: what a user can mend is one line, a bug keeps its traceback."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import click

from mstl.failures import LOST, RankLostError, between_ranks, in_words
from shards.errors import MstlError

FAILED, BUG, INTERRUPTED, TERMINATED = 1, 3, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, taken as Ctrl-C is: what is under way is left in order."""


def take_sigterm() -> None:
    """Let SIGTERM raise Terminated in the main thread, until somebody else handles it."""

    def terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)


def exit_with(action: Callable[[], object], *, prefix: str = "Error") -> NoReturn:
    """Run an action and leave: 0 done (or its own int), 1 expected failure, 2 usage, 3 bug, 4 another rank is gone,
    130 Ctrl-C, 143 SIGTERM.

    Failures of the system (disk full, no permission) count as expected: their message names the file.
    """
    try:
        code = action()
        sys.exit(code if isinstance(code, int) else 0)
    except (click.Abort, KeyboardInterrupt) as error:
        terminated = isinstance(error, Terminated) or isinstance(error.__cause__, Terminated)
        sys.exit(TERMINATED if terminated else INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except RankLostError as error:
        click.echo(f"{prefix}: {error}", err=True)
        sys.exit(LOST)
    except MstlError as error:
        click.echo(f"{prefix}: {error}", err=True)
        sys.exit(FAILED)
    except OSError as error:
        what = error.filename or "the system"
        click.echo(f"{prefix}: {what}: {error.strerror or error}. Mend that and run the same command again", err=True)
        sys.exit(FAILED)
    except Exception as error:  # noqa: BLE001 - the boundary: whatever else arrives here is a bug, or a lost peer
        if between_ranks(error):
            told = in_words(error)
            click.echo(
                f"{prefix}: another rank has ended or does not answer ({told}); its own message says why", err=True
            )
            sys.exit(LOST)
        traceback.print_exc()
        sys.exit(BUG)
