"""One stage into one folder: whole or not at all, resumed, timed over all its attempts."""

import errno
import json
import os
import re
import time
from pathlib import Path

import pytest
from rich.console import Console
from tiny_stages import RAN, TINY, BrokenConfig, CorpusConfig, ModelConfig, SlowConfig

from wenfang.core.artifact import check_artifact, fingerprint_path, read_manifest
from wenfang.core.errors import BusyError, CapacityError, DataError, InputError
from wenfang.core.report import Reporter
from wenfang.recipe import execute, execute_alone
from wenfang.recipe.execution import ATTEMPTS, fingerprint_stage, lock, partial_folder

QUIET = Reporter(console=Console(quiet=True))


@pytest.fixture
def corpus(place: Path) -> Path:
    execute_alone(TINY["tiny.corpus"], CorpusConfig(source=Path("verse.txt")), Path("corpus"), QUIET)
    RAN.clear()
    return Path("corpus")


def test_the_output_says_what_it_is_and_what_it_was_made_from(corpus: Path) -> None:
    config = ModelConfig(corpus=corpus, epochs=3)
    returned = execute_alone(TINY["tiny.model"], config, Path("deep/er/model"), QUIET)
    out = Path("deep/er/model")
    manifest = read_manifest(out)
    assert manifest == returned
    assert (out / "model.txt").read_text(encoding="utf-8") == "床前明月光" * 3
    assert (manifest.kind, manifest.stage) == ("model", "tiny.model")
    assert manifest.inputs == {"corpus": fingerprint_path(corpus)}
    assert manifest.config["epochs"] == 3
    assert "corpus" not in manifest.config
    assert manifest.summary["characters"] == 15
    assert sorted(manifest.files) == ["metrics.jsonl", "model.txt"]
    assert json.loads((out / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5}
    check_artifact(out, "model")
    assert sorted(path.name for path in out.parent.iterdir()) == ["model"]


def test_a_stage_without_metrics_leaves_no_metrics_file(corpus: Path) -> None:
    assert sorted(path.name for path in corpus.iterdir()) == ["train.txt", "wenfang.json"]


def test_the_fingerprint_covers_version_config_and_inputs(corpus: Path) -> None:
    stage, config = TINY["tiny.model"], ModelConfig(corpus=corpus)
    same = fingerprint_stage(stage, config, {"corpus": "a"})
    assert fingerprint_stage(stage, ModelConfig(corpus=Path("elsewhere")), {"corpus": "a"}) == same
    assert fingerprint_stage(stage, config, {"corpus": "b"}) != same
    assert fingerprint_stage(stage, ModelConfig(corpus=corpus, epochs=2), {"corpus": "a"}) != same


@pytest.mark.parametrize("occupied", ["file", "folder"])
def test_something_already_there_is_not_overwritten(corpus: Path, occupied: str) -> None:
    out = Path("out")
    if occupied == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds something"):
        execute_alone(TINY["tiny.model"], ModelConfig(corpus=corpus), out, QUIET)
    assert not RAN
    assert (out if occupied == "file" else out / "mine.txt").read_text() == "mine"


def test_an_empty_folder_is_as_good_as_none(corpus: Path) -> None:
    Path("out").mkdir()
    returned = execute_alone(TINY["tiny.model"], ModelConfig(corpus=corpus), Path("out"), QUIET)
    check_artifact(Path("out"), "model")
    assert read_manifest(Path("out")) == returned
    assert (Path("out") / "model.txt").read_text(encoding="utf-8") == "床前明月光"
    assert sorted(path.name for path in Path().iterdir()) == ["corpus", "out", "verse.txt"]


def test_inputs_are_checked_before_the_stage_is_imported(corpus: Path) -> None:
    stage = TINY["tiny.model"]
    with pytest.raises(InputError, match="corpus: No folder 'absent'"):
        execute_alone(stage, ModelConfig(corpus=Path("absent")), Path("out"), QUIET)
    with pytest.raises(InputError, match="base: 'corpus' is a corpus; a model is needed here"):
        execute_alone(stage, ModelConfig(corpus=corpus, base=corpus), Path("out"), QUIET)
    with pytest.raises(CapacityError):
        execute_alone(stage, ModelConfig(corpus=corpus, memory_bytes=10**18), Path("out"), QUIET)
    assert not RAN
    assert sorted(path.name for path in Path().iterdir()) == ["corpus", "verse.txt"]


def test_a_failure_publishes_nothing(place: Path) -> None:
    with pytest.raises(DataError, match="the corpus is empty"):
        execute_alone(TINY["tiny.broken"], BrokenConfig(), Path("out"), QUIET)
    assert [path.name for path in place.iterdir()] == ["verse.txt"]


def test_refused_input_takes_nothing_away_from_work_done_before(place: Path) -> None:
    partial = partial_folder(Path("out"), fingerprint_stage(TINY["tiny.broken"], BrokenConfig(), {}))
    partial.mkdir()
    (partial / "checkpoint.txt").write_text("3")
    with pytest.raises(DataError):
        execute_alone(TINY["tiny.broken"], BrokenConfig(), Path("out"), QUIET)
    assert (partial / "checkpoint.txt").read_text() == "3"


def _partial(out: Path, config: SlowConfig) -> Path:
    fingerprint = fingerprint_stage(TINY["tiny.slow"], config, {"corpus": fingerprint_path(config.corpus)})
    return partial_folder(out, fingerprint)


def test_leftovers_of_the_same_work_are_resumed(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_LOG", "log")
    config = SlowConfig(corpus=corpus, steps=5, step_s=0)
    partial = _partial(Path("out"), config)
    partial.mkdir()
    (partial / "checkpoint.txt").write_text("3")
    (partial / "checkpoint.txt.partial").write_text("cut of")
    execute_alone(TINY["tiny.slow"], config, Path("out"), QUIET)
    assert Path("log").read_text().split() == ["3", "4"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["model.txt", "wenfang.json"]


def test_leftovers_of_other_work_are_not(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_LOG", "log")
    partial = _partial(Path("out"), SlowConfig(corpus=corpus, steps=4, step_s=0))
    partial.mkdir()
    (partial / "checkpoint.txt").write_text("3")
    execute_alone(TINY["tiny.slow"], SlowConfig(corpus=corpus, steps=5, step_s=0), Path("out"), QUIET)
    assert Path("log").read_text().split() == ["0", "1", "2", "3", "4"]


def test_a_stage_killed_between_its_end_and_publication_is_not_run_again(corpus: Path) -> None:
    config = ModelConfig(corpus=corpus)
    made = execute_alone(TINY["tiny.model"], config, Path("first"), QUIET)
    Path("first").rename(partial_folder(Path("out"), made.fingerprint))
    RAN.clear()
    assert execute(TINY["tiny.model"], config, Path("out"), QUIET) == made
    assert not RAN
    check_artifact(Path("out"), "model")


def test_such_an_output_is_made_again_if_it_is_damaged(corpus: Path) -> None:
    config = ModelConfig(corpus=corpus)
    made = execute_alone(TINY["tiny.model"], config, Path("first"), QUIET)
    (Path("first") / "model.txt").write_text("")
    Path("first").rename(partial_folder(Path("out"), made.fingerprint))
    execute(TINY["tiny.model"], config, Path("out"), QUIET)
    assert (Path("out") / "model.txt").read_text(encoding="utf-8") == "床前明月光"


class TestSeconds:
    def _seconds(self, corpus: Path, state: str, *, written_s_ago: float = 0) -> float:
        config = SlowConfig(corpus=corpus, steps=1, step_s=0)
        partial = _partial(Path("out"), config)
        partial.mkdir()
        (partial / "checkpoint.txt").write_text("0")
        (partial / ATTEMPTS).write_text(state)
        for path in (partial / "checkpoint.txt", partial):
            os.utime(path, (time.time() - written_s_ago,) * 2)
        seconds = execute_alone(TINY["tiny.slow"], config, Path("out"), QUIET).seconds
        assert not (Path("out") / ATTEMPTS).exists()
        return seconds

    @pytest.fixture(autouse=True)
    def _log(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TINY_LOG", "log")

    def test_of_stopped_attempts_are_added(self, corpus: Path) -> None:
        assert 100 <= self._seconds(corpus, '{"seconds": 100.0, "started": null}') < 110

    def test_of_a_killed_attempt_count_to_its_last_trace(self, corpus: Path) -> None:
        state = json.dumps({"seconds": 100.0, "started": time.time() - 3600})
        assert 160 <= self._seconds(corpus, state, written_s_ago=3540) < 170

    @pytest.mark.parametrize("state", ["", '{"seconds": 1', "[]", '{"seconds": "x", "started": {}}', "\0"])
    def test_unreadable_are_counted_from_now(self, corpus: Path, state: str) -> None:
        assert self._seconds(corpus, state) < 10

    def test_of_a_failed_attempt_are_kept(self, place: Path) -> None:
        with pytest.raises(OSError, match="No space left"):
            execute_alone(TINY["tiny.broken"], BrokenConfig(how="disk"), Path("out"), QUIET)
        state = json.loads(next(place.glob("out.*.partial")).joinpath(ATTEMPTS).read_text())
        assert state["started"] is None
        assert 0 < state["seconds"] < 5


def test_a_full_disk_that_names_no_file_is_told_by_the_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: BrokenConfig, out: Path, report: Reporter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # As closing a file does.

    monkeypatch.setattr("tiny_stages.broken", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        execute_alone(TINY["tiny.broken"], BrokenConfig(), Path("out"), QUIET)
    assert re.fullmatch(rf"{place}/out\.\w+\.partial", caught.value.filename)


def test_only_one_may_hold_a_lock(place: Path) -> None:
    with (
        lock(Path("here/.lock"), "here"),
        pytest.raises(BusyError, match="at work in 'here'"),
        lock(Path("here/.lock"), "here"),
    ):
        pass
    with lock(Path("here/.lock"), "here"):
        pass


def test_a_lock_on_a_disk_that_became_read_only_hides_no_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    def work() -> None:
        with lock(Path("here/.lock"), "here"):
            monkeypatch.setattr(Path, "unlink", refuse)
            raise OSError(errno.EROFS, "Read-only file system", "step-00000005")

    with pytest.raises(OSError, match="step-00000005"):
        work()


@pytest.mark.parametrize(
    ("out", "why"),
    [
        pytest.param(
            "/proc/out",
            "No such file or directory",
            marks=pytest.mark.skipif(not Path("/proc/1").exists(), reason="Linux"),
        ),
        ("verse.txt/out", "Not a directory|File exists"),
    ],
)
def test_where_nothing_can_be_written_the_reason_is_told(corpus: Path, out: str, why: str) -> None:
    with pytest.raises(InputError, match=rf"Cannot write in .*: ({why})\. Choose another folder"):
        execute_alone(TINY["tiny.model"], ModelConfig(corpus=corpus), Path(out), QUIET)
