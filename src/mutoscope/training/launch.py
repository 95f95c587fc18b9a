"""torchrun whose last words are ours: the same arguments, without a traceback when a run is stopped or a rank dies.

    python -m mutoscope.training.launch --nproc-per-node 4 -m mutoscope train RECIPE

torchrun ends a run that a signal stopped, or whose processes ended with any status but 0, with a traceback of its own
code and status 1. Here the status is that of the processes, which have said themselves what happened; of a process
that had no time to, the name and the signal are printed. Under torchrun itself training works all the same.
"""

import logging
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mutoscope.errors import printable, reason
from mutoscope.waiting import share_processors

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

BAD_INPUT = 2
INTERRUPTED = 130  # status of a run that a signal ended, as of the command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Starts the processes that torchrun's arguments describe, and returns the status of the run."""
    share_processors()
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):  # every one has a level of its own
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        run.run(run.parse_args(list(sys.argv[1:] if arguments is None else arguments)))
    except SignalException:
        return INTERRUPTED
    except ChildFailedError as error:
        return status_of(error)
    except (RuntimeError, ValueError, OSError) as error:  # a port in use, a host that does not answer
        print(f"mutoscope: The ranks cannot be started: {printable(reason(error))}.", file=sys.stderr)
        return BAD_INPUT
    return 0


def status_of(error: "ChildFailedError") -> int:
    """The status of a run in which processes failed; names on stderr one that a signal ended.

    Others have printed their own message.
    """
    rank, first = error.get_first_failure()
    if first.exitcode >= 0:
        return first.exitcode
    name = signal.Signals(-first.exitcode).name
    print(
        f"mutoscope: Rank {rank} (process {first.pid}) was ended by {name}, and the others with it; the same command "
        "with --resume continues from the last checkpoint.",
        file=sys.stderr,
    )
    return 128 - first.exitcode


if __name__ == "__main__":
    sys.exit(main())
