"""Artifacts: whole or not there, known by their content, and found out when something happened to them."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wenfang.core.artifact import (
    MANIFEST,
    FileRecord,
    Manifest,
    check_artifact,
    fingerprint_of,
    fingerprint_path,
    publish,
    read_manifest,
    record_files,
    sync_folder,
    write_atomically,
)
from wenfang.core.errors import InputError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """An artifact of two files, one of them in a folder."""
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / "train.txt").write_text("床前明月光", encoding="utf-8")
    (folder / "deep/notes.txt").write_text("疑是地上霜", encoding="utf-8")
    manifest = Manifest(
        kind="corpus",
        stage="data.prepare",
        fingerprint="0123456789abcdef",
        config={"seed": 3, "dynasties": ["tang"], "optimizer": {"lr": 1e-3}},
        inputs={"source": "fedcba9876543210"},
        summary={"poems": 2, "share": 0.5, "form": "五絕"},
        seconds=1.25,
        files=record_files(folder),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


def test_a_manifest_comes_back_as_it_was_written(corpus: Path) -> None:
    manifest = read_manifest(corpus)
    assert manifest.model_dump() == json.loads((corpus / MANIFEST).read_text(encoding="utf-8"))
    assert manifest.summary == {"poems": 2, "share": 0.5, "form": "五絕"}
    assert isinstance(manifest.summary["poems"], int)
    assert manifest.config["optimizer"] == {"lr": 1e-3}


def test_files_are_recorded_by_size_and_hash(corpus: Path) -> None:
    content = "疑是地上霜".encode()
    assert record_files(corpus) == {
        "deep/notes.txt": FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest()),
        "train.txt": FileRecord(bytes=15, sha256=hashlib.sha256("床前明月光".encode()).hexdigest()),
    }


def test_a_whole_artifact_of_the_right_kind_passes(corpus: Path) -> None:
    before = record_files(corpus)
    check_artifact(corpus, "corpus")
    assert record_files(corpus) == before
    assert read_manifest(corpus).kind == "corpus"


def test_a_folder_from_outside_is_left_to_its_reader(tmp_path: Path) -> None:
    check_artifact(tmp_path, "corpus")
    assert not list(tmp_path.iterdir())  # Nor is it given a manifest.


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.txt", None, "lacks the file 'train.txt'. Run the stage that made it, data.prepare, again."),
        ("deep/notes.txt", None, "lacks the file 'deep/notes.txt'"),
        ("train.txt", b"", "train.txt' has 0 bytes instead of 15: it was cut off or changed. Run data.prepare again."),
        ("train.txt", b"x" * 14, "has 14 bytes instead of 15"),
        ("train.txt", b"x" * 16, "has 16 bytes instead of 15"),
        (MANIFEST, b"", "wenfang.json' is damaged. Delete that folder and run its stage again."),
        (MANIFEST, b'{"kind": "corpus"', "is damaged"),
        (MANIFEST, b'{"kind": "corpus"}', "is damaged"),
        (MANIFEST, b"\xff\xfe", "is damaged"),
    ],
)
def test_what_happened_to_an_artifact_is_told(corpus: Path, name: str, content: bytes | None, said: str) -> None:
    if content is None:
        (corpus / name).unlink()
    else:
        (corpus / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        check_artifact(corpus, "corpus")
    assert said in str(caught.value)
    assert repr(str(corpus))[:-1] in str(caught.value)  # Where: the folder, or a file in it.
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_in_place_of_a_file_is_a_missing_file(corpus: Path) -> None:
    (corpus / "train.txt").unlink()
    (corpus / "train.txt").mkdir()
    with pytest.raises(InputError, match=r"lacks the file 'train\.txt'"):
        check_artifact(corpus, "corpus")


def test_another_kind_and_no_folder_are_told(corpus: Path) -> None:
    with pytest.raises(InputError, match="corpus' is a corpus; a model is needed here"):
        check_artifact(corpus, "model")
    for absent, why in ((corpus / "nowhere", r"'\. Check the path"), (corpus / "train.txt", "': it is a file")):
        with pytest.raises(InputError, match=f"No folder '.*{why}"):
            check_artifact(absent, "corpus")
    with pytest.raises(InputError, match=r"has no wenfang\.json"):
        read_manifest(corpus / "deep")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def _reversed(value: object) -> object:
    """The same value, every mapping written the other way round."""
    if isinstance(value, dict):
        return {key: _reversed(value[key]) for key in reversed(value)}
    return [_reversed(member) for member in value] if isinstance(value, list) else value


@given(json_values)
@settings(deadline=None)
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(value: object) -> None:
    assert fingerprint_of(_reversed(value)) == fingerprint_of(value)
    assert len(fingerprint_of(value)) == 16
    assert int(fingerprint_of(value), 16) >= 0


@given(json_values, json_values)
@settings(deadline=None)
def test_different_values_have_different_fingerprints(one: object, other: object) -> None:
    assert (fingerprint_of(one) == fingerprint_of(other)) == (json.dumps(_sorted(one)) == json.dumps(_sorted(other)))


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(member) for member in value] if isinstance(value, list) else value


def test_a_fingerprint_is_the_same_in_every_process_and_every_version() -> None:
    """A recorded value: if it changes, every output that users have is made anew."""
    value = {"stage": "data.prepare", "config": {"seed": 0, "題": ["秋夜", None, 1e-3]}}
    expected = hashlib.sha256(
        '{"config": {"seed": 0, "題": ["秋夜", null, 0.001]}, "stage": "data.prepare"}'.encode()
    ).hexdigest()[:16]
    assert fingerprint_of(value) == expected


class TestFingerprintOfAPath:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        folder = tmp_path / "source"
        (folder / "b").mkdir(parents=True)
        (folder / "a.txt").write_text("one")
        (folder / "b/c.txt").write_text("two")
        return folder

    def test_the_place_does_not_matter(self, source: Path) -> None:
        before = fingerprint_path(source)
        assert fingerprint_path(source.rename(source.with_name("moved"))) == before

    @pytest.mark.parametrize("change", ["content", "name", "more", "less"])
    def test_the_content_does(self, source: Path, change: str) -> None:
        before = fingerprint_path(source)
        if change == "content":
            (source / "b/c.txt").write_text("owt")
        elif change == "name":
            (source / "b/c.txt").rename(source / "b/d.txt")
        elif change == "more":
            (source / "d.txt").write_text("")
        else:
            (source / "a.txt").unlink()
        assert fingerprint_path(source) != before

    def test_looking_into_a_folder_does_not_make_it_another(self, source: Path) -> None:
        before = fingerprint_path(source)
        (source / ".DS_Store").write_text("x")
        (source / "b/__pycache__").mkdir()
        (source / "b/__pycache__/build.pyc").write_text("x")
        os.utime(source / "a.txt", (0, 0))
        assert fingerprint_path(source) == before

    def test_a_file_is_known_by_its_bytes(self, source: Path) -> None:
        (source / "copy.txt").write_text("one")
        assert fingerprint_path(source / "copy.txt") == fingerprint_path(source / "a.txt")
        assert fingerprint_path(source / "copy.txt") != fingerprint_path(source / "b/c.txt")

    def test_an_artifact_is_known_by_its_manifest(self, corpus: Path) -> None:
        assert fingerprint_path(corpus) == "0123456789abcdef"

    def test_nothing_there_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"Nothing is at '.*nowhere'\. Check the path\."):
            fingerprint_path(tmp_path / "nowhere")


class TestPublish:
    @pytest.fixture
    def partial(self, tmp_path: Path) -> Path:
        folder = tmp_path / "model.partial"
        folder.mkdir()
        (folder / "weights").write_text("whole")
        return folder

    def test_a_folder_appears_by_rename(self, partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        inode = partial.stat().st_ino
        final = partial.with_name("model")
        publish(partial, final)
        assert final.stat().st_ino == inode
        assert [path.name for path in final.parent.iterdir()] == ["model"]

    def test_it_replaces_what_a_damaged_run_left(self, partial: Path) -> None:
        final = partial.with_name("model")
        final.mkdir()
        (final / "weights").write_text("cut o")
        (final / "more").write_text("")
        publish(partial, final)
        assert [(path.name, path.read_text()) for path in final.iterdir()] == [("weights", "whole")]

    def test_every_file_reaches_the_disk_before_the_name_does(
        self, partial: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        fsync, rename = os.fsync, Path.rename

        def record_sync(descriptor: int) -> None:
            done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
            fsync(descriptor)

        def record_rename(path: Path, target: Path) -> Path:
            done.append("rename")
            return rename(path, target)

        monkeypatch.setattr(os, "fsync", record_sync)
        monkeypatch.setattr(Path, "rename", record_rename)
        publish(partial, partial.with_name("model"))
        assert done == ["weights", "model.partial", "rename", partial.parent.name]


KILLED_WHILE_WRITING = """
import os, sys
from pathlib import Path
from wenfang.core.artifact import write_atomically
os.fsync = lambda descriptor: os._exit(9)
write_atomically(Path(sys.argv[1]), b"new" * 1000)
"""


class TestWriteAtomically:
    def test_old_bytes_or_new_ones(self, tmp_path: Path) -> None:
        path = tmp_path / "run.json"
        write_atomically(path, b"old")
        assert path.read_bytes() == b"old"
        done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(path)], check=False, timeout=60)
        assert done.returncode == 9
        assert path.read_bytes() == b"old"
        write_atomically(path, b"new")
        assert path.read_bytes() == b"new"
        assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_a_disk_that_fails_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "weights").write_bytes(b"1")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"Input/output error: .*weights"):
        sync_folder(tmp_path)
