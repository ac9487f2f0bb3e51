"""The product as a user starts it, and a recipe small enough to run whole: real poems, real stages, no real poet."""

import functools
import lzma
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EVERY = 100
"""One Tang poem in so many: 351 of them, of all four forms, by 205 poets."""

RECIPE = """\
name: tiny
stages:
  corpus:
    uses: data.prepare
    with: {source: verse, dynasties: [tang], validation_share: 0.2}
  conversations:
    uses: data.converse
    with: {corpus: "${corpus}"}
  tokenizer:
    uses: tokenizer.train
    with: {corpus: "${corpus}", vocab_size: 600, character_coverage: 0.9}
  pretrain:
    uses: train.pretrain
    with:
      corpus: ${corpus}
      tokenizer: ${tokenizer}
      dim: 16
      layers: 1
      heads: 2
      kv_heads: 1
      head_dim: 8
      hidden: 32
      context: 320
      batch: 2
      steps: 60
      compile: false
      checkpoint_every_s: 0.001
  sft:
    uses: train.sft
    with:
      model: ${pretrain}
      conversations: ${conversations}
      context: 320
      batch: 2
      steps: 60
      compile: false
      checkpoint_every_s: 0.001
  evaluate:
    uses: evaluate.verse
    with: {model: "${sft}", corpus: "${corpus}", poems: 2, held_out: 8, batch: 8}
"""
STAGES = ("corpus", "conversations", "tokenizer", "pretrain", "sft", "evaluate")

TIMED = ("wenfang.json", "metrics.jsonl", "run.json", "curves.svg")
"""Files that say how long things took, so that no two runs write the same."""


@dataclass(frozen=True)
class Finished:
    """A folder where the recipe ran to its end, and what it said."""

    place: Path
    stdout: str
    stderr: str

    def output(self, stage: str) -> Path:
        """The folder a stage made."""
        return output(self.place, stage)


def output(place: Path, stage: str) -> Path:
    """The one folder a stage made in a place."""
    (folder,) = (place / "runs/tiny" / stage).iterdir()
    return folder


def prepare(place: Path) -> Path:
    """Put a source of verse and the recipe into a folder; returns the folder."""
    (place / "verse").mkdir(parents=True)
    (place / "verse/tang.tsv.xz").write_bytes(_source())
    (place / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return place


@functools.cache
def _source() -> bytes:
    poems = lzma.decompress((ROOT / "data/verse/tang.tsv.xz").read_bytes()).decode().splitlines()[::EVERY]
    return lzma.compress("".join(poem + "\n" for poem in poems).encode())


def start(
    place: Path, *words: str, largest_file_bytes: int = resource.RLIM_INFINITY, **environment: str
) -> subprocess.Popen[str]:
    """Start `wenfang` in a folder. One thread: on a busy machine the threads of a tiny model wait for each other."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    return subprocess.Popen(
        [sys.executable, "-m", "wenfang", *words],
        cwd=place,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "WENFANG_LANGUAGE": "en",
            "COLUMNS": "200",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, hard)),
    )


def wenfang(
    place: Path, *words: str, code: int = 0, largest_file_bytes: int = resource.RLIM_INFINITY, **environment: str
) -> tuple[str, str]:
    """Run `wenfang` to its end and check its exit code; returns standard output and standard error."""
    process = start(place, *words, largest_file_bytes=largest_file_bytes, **environment)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    return stdout, stderr


def contents(place: Path) -> dict[str, bytes]:
    """Every file below a folder that holds no times, by name. The cards of models tell speed, so they do too."""
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file()
        and path.name not in TIMED
        and not (path.name == "README.md" and (path.parent / "config.json").exists())
    }


def states(table: str) -> dict[str, str]:
    """What the closing table says of each stage: `made` or `kept`."""
    rows = [line.split() for line in table.splitlines()]
    return {row[0]: row[1] for row in rows if row and row[0] in STAGES}
