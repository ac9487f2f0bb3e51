"""Runs one stage into a folder that appears whole or not at all, and goes on where a killed run stopped."""

import contextlib
import errno
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from wenfang.core.artifact import (
    CHECKPOINTS,
    MANIFEST,
    Manifest,
    check_artifact,
    fingerprint_of,
    publish,
    read_manifest,
    record_files,
    sync_folder,
    write_atomically,
)
from wenfang.core.config import Config, input_fields
from wenfang.core.errors import BusyError, InputError
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.recipe.capacity import check_capacity
from wenfang.recipe.figures import duration, size
from wenfang.recipe.inputs import check_input, input_fingerprints, input_paths
from wenfang.recipe.stages import Stage

ATTEMPTS = ".attempts.json"
"""Beside a stage's unfinished work: how long earlier attempts took and when the present one began."""


def fingerprint_stage(stage: Stage, config: Config, inputs: Mapping[str, str]) -> str:
    """Stands for everything that decides a stage's output: the code's version, the config and the inputs."""
    return fingerprint_of(
        {"stage": stage.name, "version": stage.version, "config": _settings(config), "inputs": dict(inputs)}
    )


def partial_folder(out: Path, fingerprint: str) -> Path:
    """Where a stage works before its output appears as `out`; only the same work resumes there."""
    name = out.name if out.name == fingerprint else f"{out.name}.{fingerprint}"
    return out.with_name(f"{name}.partial")


def execute(
    stage: Stage, config: Config, out: Path, report: Reporter, *, inputs: Mapping[str, str] | None = None
) -> Manifest:
    """Run a stage and publish its output as `out`, replacing a damaged one.

    Killed at any moment and called again, it continues from what the stage left in its partial folder.

    Args:
        stage: what to run.
        config: its options; the inputs they name exist.
        out: the folder to appear. The caller holds the lock that keeps others away from it.
        report: where notices go; the stage's metrics are kept as `metrics.jsonl` in its output.
        inputs: fingerprints of the inputs where the caller has them already.

    Raises:
        InputError: the stage refuses its input; nothing is left but what an earlier attempt had done.
        WenfangError: what else the stage raises; its unfinished work stays for the next attempt.
        OSError: the disk is full or may not be written; the unfinished work stays as well.
    """
    inputs = input_fingerprints(config) if inputs is None else inputs
    fingerprint = fingerprint_stage(stage, config, inputs)
    partial = partial_folder(out, fingerprint)
    manifest = _finished(partial, stage.kind)
    if manifest is None:
        with _naming(partial), _attempt(partial, report) as attempt:
            reporter = Reporter(metrics_path=partial / "metrics.jsonl", console=report.console)
            summary = stage.function()(config, partial, reporter)
        manifest = Manifest(
            kind=stage.kind,
            stage=stage.name,
            fingerprint=fingerprint,
            config=_settings(config),
            inputs=dict(inputs),
            summary=summary,
            seconds=attempt.seconds,
            files={name: record for name, record in record_files(partial).items() if name != ATTEMPTS},
        )
        sync_folder(partial)  # The manifest says that the files are whole, so they reach the disk before it.
        write_atomically(partial / MANIFEST, manifest.model_dump_json(indent=1).encode())
    (partial / ATTEMPTS).unlink(missing_ok=True)
    for folder in list(partial.rglob(CHECKPOINTS)):
        shutil.rmtree(folder)
    publish(partial, out)
    return manifest


def execute_alone(stage: Stage, config: Config, out: Path, report: Reporter) -> Manifest:
    """Run one stage outside any recipe, as `wenfang data prepare --out DIR` does.

    Raises:
        InputError: an input is missing or of another kind, `out` already holds something or cannot be written.
        CapacityError: the machine has not the memory or disk for it.
        BusyError: another process is writing the same `out`.
    """
    for keys, path, wanted in input_paths(config):
        try:
            check_input(path, wanted)
        except InputError as error:
            raise InputError(f"{keys[0]}: {error}") from None
    out = out.resolve()
    with lock(out.with_name(f"{out.name}.lock"), str(out)):
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise InputError(
                say(
                    zh=f"{str(out)!r} 已有內容。請另選資料夾，或先刪除它。",
                    en=f"{str(out)!r} already holds something. Choose another folder, or delete it first.",
                )
            )
        inputs = input_fingerprints(config)
        partial = partial_folder(out, fingerprint_stage(stage, config, inputs))
        forecast = stage.forecast_function()(config)
        check_capacity({stage.name: forecast}, out, {stage.name: partial})
        costs = duration(forecast.seconds), size(forecast.memory_bytes), size(forecast.disk_bytes)
        report.notice(
            say(
                zh="預計 {}，記憶體 {}，磁碟 {}。".format(*costs),
                en="Forecast: {}, {} of memory, {} of disk.".format(*costs),
            )
        )
        return execute(stage, config, out, report, inputs=inputs)


def assist(stage: Stage, config: Config) -> None:
    """Help another process that runs the same stage: work in silence, and keep nothing of the output.

    Raises:
        WenfangError: what the stage raises.
    """
    with tempfile.TemporaryDirectory() as scratch:
        stage.function()(config, Path(scratch), Reporter(console=Console(quiet=True)))


@contextlib.contextmanager
def lock(path: Path, held: str) -> Iterator[None]:
    """Keep other processes out of `held` while the block runs; a killed process lets go by itself.

    Raises:
        InputError: nothing can be written where `path` is.
        BusyError: another process is in there.
    """
    _check_writable(path.parent)
    holder = FileLock(path, timeout=0)
    try:
        holder.acquire()
    except Timeout:
        raise BusyError(
            say(
                zh=f"另一個 wenfang 正在使用 {held!r}。請等它結束，或先停止它。",
                en=f"Another wenfang is at work in {held!r}. Wait for it to finish, or stop it first.",
            )
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # A disk that became read-only is the block's error to tell.
            path.unlink()  # Still held: one who opened it just now finds it gone and starts over.
        holder.release()


def _check_writable(folder: Path) -> None:
    """Make a folder and a file in it, as a lock that cannot be made looks like one that is held."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(
            say(
                zh=f"無法寫入 {str(folder)!r}：{why}。請換個資料夾，或檢查權限。",
                en=f"Cannot write in {str(folder)!r}: {why}. Choose another folder, or check its permissions.",
            )
        ) from None


def _settings(config: Config) -> dict[str, object]:
    """A config without its inputs, whose content the input fingerprints stand for."""
    return config.model_dump(mode="json", exclude=set(input_fields(type(config))))


def _finished(partial: Path, kind: str) -> Manifest | None:
    """The manifest of a stage that was done and only not yet published when it was killed."""
    if not (partial / MANIFEST).is_file():
        return None
    try:
        check_artifact(partial, kind)
        return read_manifest(partial)
    except InputError:
        shutil.rmtree(partial)
        return None


class _Attempt:
    """Counts a stage's wall time over all its attempts, in a file that a kill cannot leave half-written."""

    def __init__(self, partial: Path) -> None:
        self._path = partial / ATTEMPTS
        self._before = _seconds_before(partial)
        self._start = time.monotonic()
        self._keep(self._before, started=time.time())

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def pause(self) -> None:
        """Note the time so far, exactly, when a stage ends in a way that can be caught."""
        with contextlib.suppress(OSError):  # A full disk is the stage's error to tell, not this one's.
            self._keep(self.seconds, started=None)

    def _keep(self, seconds: float, *, started: float | None) -> None:
        write_atomically(self._path, json.dumps({"seconds": seconds, "started": started}).encode())


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Say where the disk is full: a write that fails does not know its file, as opening it would."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = str(folder)
        raise


@contextlib.contextmanager
def _attempt(partial: Path, report: Reporter) -> Iterator[_Attempt]:
    resumed = partial.is_dir() and any(path.name != ATTEMPTS for path in partial.iterdir())
    if resumed:
        report.notice(say(zh="接續先前中斷的工作。", en="Continuing from an interrupted run."))
    partial.mkdir(parents=True, exist_ok=True)
    for path in list(partial.rglob("*.partial")):  # Files whose writing a kill cut short.
        if path.is_file():
            path.unlink()
    attempt = _Attempt(partial)
    try:
        yield attempt
    except InputError:
        if not resumed:  # Refused: trying the same again cannot go further.
            shutil.rmtree(partial)
        raise
    finally:
        if partial.exists():
            attempt.pause()


def _seconds_before(partial: Path) -> float:
    """Time of earlier attempts. One that was killed is counted up to the last file it wrote."""
    try:
        state = json.loads((partial / ATTEMPTS).read_bytes())
        seconds, started = float(state["seconds"]), state["started"]
        if started is None:
            return seconds
        written = [path.stat().st_mtime for path in partial.rglob("*") if path.name != ATTEMPTS]
        lasted = min(max(written, default=0.0), time.time()) - float(started)
        return seconds + max(lasted, 0.0)
    except (OSError, ValueError, TypeError, KeyError):  # Missing or cut off: time before it is not known.
        return 0.0
