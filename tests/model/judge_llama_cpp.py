"""llama.cpp itself, asked over HTTP; in a process of its own, which its assertions may end."""

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SERVER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.port, params.n_gpu_layers = int(sys.argv[2]), 1, 0, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # It rounds to 16 bits.
params.warmup, params.verbosity = False, -1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


class LlamaCpp:
    """What a running server answers."""

    def __init__(self, address: str) -> None:
        self.address = address

    def tokenize(self, text: str, *, begin: bool = False) -> list[int]:
        """Token ids of plain text, or of a text that begins here."""
        asked = {"content": text, "parse_special": False, "add_special": begin}
        ids: list[int] = self._post("/tokenize", asked)["tokens"]
        return ids

    def detokenize(self, ids: list[int]) -> str:
        return str(self._post("/detokenize", {"tokens": ids})["content"])

    def render(self, messages: list[dict[str, str]]) -> str:
        """The chat template applied."""
        return str(self._post("/apply-template", {"messages": messages})["prompt"])

    def logprobs(self, ids: list[int], vocab_size: int) -> torch.Tensor:
        """Log-probabilities of the token after `ids`; −100 for tokens outside the likeliest `vocab_size`."""
        body = {"prompt": ids, "n_predict": 1, "n_probs": vocab_size, "temperature": 0.0, "cache_prompt": True}
        found = self._post("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        result = torch.full((max(entry["id"] for entry in found) + 1,), -100.0)
        result[[entry["id"] for entry in found]] = torch.tensor([max(-100.0, entry["logprob"]) for entry in found])
        return result

    def _post(self, path: str, body: dict[str, object]) -> dict:
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)


@contextlib.contextmanager
def llama_cpp(path: Path, *, context: int) -> Iterator[LlamaCpp]:
    """Open a GGUF file: one thread, keys and values in fp32."""
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (pip install xllamacpp)")
    command = [sys.executable, "-c", SERVER, str(path), str(context)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = next((line.strip() for line in process.stdout if line.startswith("http")), None)
            assert address, "llama.cpp refused the file; see its messages above"
            yield LlamaCpp(address)
        finally:
            process.kill()
