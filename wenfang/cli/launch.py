"""`--nproc`: the same command once per process, started and watched by torch's elastic agent."""

import os
import sys
import uuid

from wenfang.cli.interrupt import Interrupted
from wenfang.core.errors import InputError, WenfangError
from wenfang.core.hardware import detect
from wenfang.core.language import say


class Fallen(WenfangError):
    """A process of the job ended, and the others were stopped; `exit_code` is what it ended with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_worker() -> bool:
    """Whether torchrun (or `launch`) started this process."""
    return "RANK" in os.environ


def launch(processes: int) -> None:
    """Run this command in `processes` processes on this machine and wait for them.

    Raises:
        InputError: a process cannot use its input or its disk, and has said why.
        Interrupted: the user stopped the job.
        Fallen: a process ended otherwise.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Each would otherwise start as many threads as there are cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(detect().cores // processes, 1)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "wenfang", *sys.argv[1:])
    except SignalException as error:
        raise Interrupted(128 + int(error.sigval)) from None
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        raise _explained(number, processes, failure.exitcode) from None


def _explained(number: int, processes: int, code: int) -> WenfangError:
    if code == InputError.exit_code:
        return InputError(
            say(
                zh="所有行程已停止。請排除上述問題，再執行同一個指令。",
                en="All processes were stopped. Set right what is said above, then run the same command.",
            )
        )
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return Fallen(
        say(
            zh=f"{processes} 個行程中的第 {number} 個以 {how} 結束，其餘已停止。"
            "再執行同一個指令就會從最後的檢查點接續。",
            en=f"Process {number} of {processes} ended with {how}; the others were stopped. Run the same command "
            "again to continue from the last checkpoint.",
        ),
        128 - code if code < 0 else code,
    )
