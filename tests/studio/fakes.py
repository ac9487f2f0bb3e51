"""A scripted poet, and a run folder with training records."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from serve.fakes import FakeEngine

from wenfang.engine import Delta, SamplingParams

REGULAR = "仄起不入韻，押尤韻\n白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。"
FAULTY = "平起入韻，押陽韻\n牀前看月光，疑是地上霜。\n舉頭望山月，低頭思故鄉。"
HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>{{ 7*7 }}"


class Poet(FakeEngine):
    """Answers with a known poem; 月 in the request brings a faulty one, 毒 markup, 錯 an error, 慢 a slow reply."""

    name = "poet"

    def write(self, prompt: list[int], params: SamplingParams) -> Iterator[Delta]:
        text = "".join(map(chr, prompt))
        if "錯" in text:
            raise RuntimeError("out of memory")
        reply = HOSTILE if "毒" in text else FAULTY if "月" in text else REGULAR
        pause_s = 0.2 if "慢" in text else 0.005
        try:
            for i, character in enumerate(reply, 1):
                time.sleep(pause_s)
                yield Delta(character, "stop" if i == len(reply) else None, i)
        except GeneratorExit:
            self.closed.set()
            raise


def write_metrics(folder: Path, steps: range) -> None:
    """Append what training writes: a measurement every 10 steps, a validation every 50."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        for step in steps:
            loss = 8 - step / 100
            line = {"step": step, "loss": loss, "bits_per_character": loss * 1.5, "tokens_per_s": 9000, "lr": 0.01}
            file.write(json.dumps(line) + "\n")
            if step % 50 == 0:
                file.write(json.dumps({"step": step, "validation_loss": loss + 0.1}) + "\n")


def make_run(folder: Path) -> Path:
    """A run with a corpus, a pretrained model and a tuned one."""
    (folder / "prepare/c0").mkdir(parents=True)
    write_metrics(folder / "pretrain/p0", range(10, 201, 10))
    write_metrics(folder / "sft/s0", range(10, 101, 10))
    stages = {
        "prepare": ("data.prepare", "corpus", "prepare/c0", 6.0, {"poems": 118234}),
        "pretrain": ("train.pretrain", "model", "pretrain/p0", 322.0, {"parameters": 7340032}),
        "sft": ("train.sft", "model", "sft/s0", 128.0, {"validation_loss": 4.01}),
        "evaluate": ("evaluate.verse", "evaluation", "evaluate/e0", 31.0, {"<b>rhyme": 0.78}),
    }
    keys = ("uses", "kind", "path", "seconds", "summary")
    entries = {name: dict(zip(keys, values, strict=True)) for name, values in stages.items()}
    (folder / "run.json").write_text(json.dumps({"recipe": "poet", "stages": entries}))
    return folder
