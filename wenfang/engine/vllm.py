"""vLLM as a child of this process, for machines with fast GPUs: it writes, and nobody but this process may ask it."""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from wenfang.core.errors import InputError, ModelError
from wenfang.core.language import say
from wenfang.engine.remote import RemoteEngine
from wenfang.model.peft import read_rank

HOST = "127.0.0.1"
PR_SET_PDEATHSIG = 1
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks that vLLM takes."""
ENDING_S = 10
"""How long vLLM may take to end before it is killed."""


class VllmEngine(RemoteEngine):
    """A model folder or GGUF file served by a vLLM of our own.

    Args:
        folder: what to serve.
        adapters: folders of adapters on it, by name.

    Raises:
        InputError: vLLM is not installed.
        ModelError: an adapter cannot be used, or vLLM ended before it was ready; what it says stands above.
        TokenizerError: the folder cannot be used.
    """

    def __init__(self, folder: Path, adapters: Mapping[str, Path] | None = None) -> None:
        program = shutil.which("vllm")
        if program is None:
            raise InputError(
                say(
                    zh="找不到 `vllm`。請先安裝（`pip install vllm`，需要 GPU），或拿掉 --engine vllm。",
                    en="There is no `vllm` here. Install it (`pip install vllm`, which needs a GPU), "
                    "or leave --engine vllm out.",
                )
            )
        name, port, key = folder.resolve().name, _free_port(), secrets.token_urlsafe(32)
        command = [program, "serve", str(folder), "--host", HOST, "--port", str(port), "--served-model-name", name]
        # Otherwise the folder would change the defaults of what a request leaves out.
        command += ["--generation-config", "vllm"]
        # Our grammars are llguidance's.
        command += ["--structured-outputs-config.backend", "guidance"]
        # Otherwise nobody learns how much of a prompt was in its cache.
        command += ["--enable-prompt-tokens-details"]
        command += _lora_options(adapters or {})
        # Its own session: Ctrl-C must not end it before the answers in progress are written. Its log goes to ours.
        self._process = subprocess.Popen(
            command,
            # It would report its use to its makers.
            env={**os.environ, "VLLM_API_KEY": key, "DO_NOT_TRACK": "1"},
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        try:
            self._wait(f"http://{HOST}:{port}/health")
            super().__init__(f"http://{HOST}:{port}", folder, model=name, key=key)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End vLLM and what it has started."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING_S)
        with suppress(ProcessLookupError):  # Nobody is left.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _wait(self, address: str) -> None:
        """Wait until vLLM has loaded the model, however long that takes, or has ended."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while self._process.poll() is None:
            with suppress(OSError, urllib.error.URLError), direct.open(address, timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.2)
        raise ModelError(
            say(
                zh=f"vLLM 還沒就緒就以 {self._process.returncode} 結束；原因見上方它的訊息。",
                en=f"vLLM ended with {self._process.returncode} before it was ready; what it said stands above.",
            )
        )


def _lora_options(adapters: Mapping[str, Path]) -> list[str]:
    """vLLM's options for adapters, whose ranks it wants to know beforehand.

    Raises:
        ModelError: a folder holds no adapter.
    """
    if not adapters:
        return []
    rank = max(read_rank(folder) for folder in adapters.values())
    largest = next((allowed for allowed in LORA_RANKS if allowed >= rank), rank)
    modules = [f"{name}={folder}" for name, folder in adapters.items()]
    return ["--enable-lora", "--max-lora-rank", str(largest), "--lora-modules", *modules]


def _end_with_parent() -> None:
    """Run in the child: whatever ends the thread that started it, even SIGKILL, ends it too."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        return int(taken.getsockname()[1])
