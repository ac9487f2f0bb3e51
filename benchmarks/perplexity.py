"""What rounding a model's weights costs: the change of perplexity against bf16, ours beside llama.cpp's formats.

    .venv/bin/python benchmarks/perplexity.py model.gguf

The model is any GGUF file. int8 and int4 are rounded and multiplied as the engine does, activations included. Q8_0 and
Q4_0 are written by `export_gguf` and multiplied in fp32, so what llama.cpp loses by rounding activations is not counted
against it. The text is two passages of 512 tokens of each of this project's own documents, English and Chinese.
"""

import argparse
import math
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from wenfang.model import Decoder, load_model
from wenfang.model.gguf import export_gguf, import_gguf, load_gguf_tokenizer
from wenfang.model.memory import Memory
from wenfang.model.quantized import load_quantized
from wenfang.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
TEXTS = ("README.md", "README.zh-TW.md", "LICENSE", "docs/serving.md", "docs/structured-output.md", "docs/decoding.md")
PASSAGE, APART = 512, 3000
"""Tokens of a passage, and characters from one's beginning to the next's."""


@torch.inference_mode()
def nats(model: Decoder, passages: list[list[int]]) -> float:
    """Mean negative log-likelihood of a token."""
    total = 0.0
    for ids in passages:
        ids_1T = torch.tensor([ids])
        hidden_1TD = model.eval().hidden(ids_1T, torch.arange(len(ids))[None], Memory(), torch.float32)
        total += F.cross_entropy(model.logits(hidden_1TD)[0, :-1].float(), ids_1T[0, 1:], reduction="sum").item()
    return total / sum(len(ids) - 1 for ids in passages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    path = parser.parse_args().model
    tokenizer = Tokenizer(*load_gguf_tokenizer(path))
    texts = [(ROOT / name).read_text(encoding="utf-8")[start:] for name in TEXTS for start in (0, APART)]
    passages = [ids for text in texts if len(ids := tokenizer.begin(text)[:PASSAGE]) > 1]
    before = nats(load_model(path, dtype=torch.bfloat16), passages)
    print(f"{'bf16':5} perplexity {math.exp(before):.2f}, {sum(map(len, passages))} tokens", flush=True)

    def tell(name: str, model: Decoder) -> None:
        print(f"{name:5} {math.expm1(nats(model, passages) - before):+.1%}", flush=True)

    tell("int8", load_quantized(path, "int8"))
    tell("int4", load_quantized(path, "int4"))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        import_gguf(path, folder, dtype=torch.bfloat16)
        for dtype in ("q8_0", "q4_0"):
            file = folder.with_name(f"{dtype}.gguf")
            export_gguf(folder, file, dtype=dtype)
            tell(dtype, load_model(file, dtype=torch.float32))


if __name__ == "__main__":
    main()
