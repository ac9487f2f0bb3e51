"""The server under load and faults: many streams, clients that hang up, malformed bodies; beside llama.cpp's server.

    python benchmarks/serve.py models/poet [--minutes 5] [--quantize int8] [--llama model.gguf]

Every answer must be a whole stream or an error in OpenAI's shape. At the end the cache must hold no block, and memory
is compared with what it was after the first quarter. With `--llama`, llama.cpp's server (through `xllamacpp`) gets the
same load with the same model as GGUF.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

MALFORMED = (
    b"{",
    b"[]",
    b'{"model": 1}',
    b'{"messages": []}',
    b'{"messages": [], "messages": []}',
    b"\xff",
    b"[" * 5000,
)
JSON = {"Content-Type": "application/json"}
HANG_UP, BROKEN = 1 / 3, 0.05
LLAMA = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
params.n_ctx = 512 * params.n_parallel
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(100000)
"""


@dataclass
class Tally:
    """What happened."""

    outcomes: Counter[str] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


async def client(url: str, model: str, until: float, tokens: int, tally: Tally, rng: random.Random) -> None:
    """One client that asks again and again, hangs up at random and sometimes sends nonsense."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        while time.monotonic() < until:
            try:
                if rng.random() < BROKEN:
                    await broken(http, tally, rng)
                else:
                    await stream(http, model, tokens, tally, rng)
            except httpx.TransportError as error:
                tally.outcomes["no answer"] += 1
                tally.wrong.append(f"no answer: {error}")


async def broken(http: httpx.AsyncClient, tally: Tally, rng: random.Random) -> None:
    """A malformed body, which must be refused."""
    answer = await http.post("/v1/chat/completions", content=rng.choice(MALFORMED), headers=JSON)
    tally.outcomes[f"malformed: {answer.status_code}"] += 1
    if not 400 <= answer.status_code < 500 or "error" not in answer.json():
        tally.wrong.append(f"malformed: {answer.status_code} {answer.text[:80]}")


async def stream(http: httpx.AsyncClient, model: str, tokens: int, tally: Tally, rng: random.Random) -> None:
    """A well-formed request, perhaps left before its end."""
    question = f"寫一首五言絕句，題為〈{rng.choice('春夏秋冬')}{rng.choice('山水花月')}〉。"
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "max_tokens": tokens, "stream": True}
    leave_after = rng.randrange(0, tokens) if rng.random() < HANG_UP else None
    started, pieces = time.monotonic(), 0
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            text = (await answer.aread()).decode()
            tally.outcomes[f"refused: {answer.status_code}"] += 1
            if "error" not in json.loads(text):
                tally.wrong.append(f"{answer.status_code} {text[:80]}")
            await asyncio.sleep(0.2)
            return
        last = ""
        async for line in answer.aiter_lines():
            last = line or last
            if '"content":"' in line and '"content":""' not in line:
                pieces += 1
                if pieces == 1:
                    tally.first_s.append(time.monotonic() - started)
            if leave_after is not None and pieces > leave_after:
                tally.outcomes["hung up"] += 1
                return
        tally.outcomes["whole"] += 1
        if last != "data: [DONE]":
            tally.wrong.append(f"ends with {last[:80]}")


async def load(url: str, model: str, streams: int, seconds: float, tokens: int) -> Tally:
    """All clients at once."""
    tally, until = Tally(), time.monotonic() + seconds
    await asyncio.gather(*(client(url, model, until, tokens, tally, random.Random(i)) for i in range(streams)))
    return tally


def resident_mb(pid: int) -> float:
    """Memory that a process holds."""
    fields = Path(f"/proc/{pid}/status").read_text().split()
    return int(fields[fields.index("VmRSS:") + 1]) / 1024


@contextmanager
def running(command: list[str], url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers at `url`."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health", timeout=30).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def report(name: str, tally: Tally, seconds: float) -> None:
    """The figures of one server."""
    first = sorted(tally.first_s) or [float("nan")]
    p95 = first[int(0.95 * (len(first) - 1))]
    print(f"{name}: {dict(sorted(tally.outcomes.items()))}")
    print(f"{name}: {tally.outcomes['whole'] / seconds:.1f} whole answers/s, time to first token median "
          f"{statistics.median(first):.3f} s, p95 {p95:.3f} s")  # fmt: skip
    for wrong, times in Counter(tally.wrong).most_common(5):
        print(f"{name}: WRONG {times} times: {wrong}")


def main() -> int:
    """Run the load; 1 when anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=1 / 3)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--port", type=int, default=8399)
    parser.add_argument("--quantize", choices=("int8", "int4"), help="as `wenfang serve --quantize`")
    parser.add_argument("--llama", help="the same model as GGUF, for llama.cpp's server")
    options = parser.parse_args()
    seconds, url = 60 * options.minutes, f"http://127.0.0.1:{options.port}"
    command = [sys.executable, "-m", "wenfang", "serve", str(options.model), "--port", str(options.port)]
    command += ["--quantize", options.quantize] if options.quantize else []
    with running(command, url) as process:
        name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        quarter = asyncio.run(load(url, name, options.streams, seconds / 4, options.tokens))
        before = resident_mb(process.pid)
        tally = asyncio.run(load(url, name, options.streams, seconds * 3 / 4, options.tokens))
        time.sleep(2)
        after = resident_mb(process.pid)
        figures = httpx.get(f"{url}/metrics").text
    report("wenfang", tally, seconds * 3 / 4)
    held = [line for line in figures.splitlines() if line.startswith(("wenfang_cache_used", "wenfang_running"))]
    leaks = [line for line in held if not line.endswith(" 0.0")]
    print(f"memory: {before:.0f} MB after a quarter, {after:.0f} MB at the end; cache: {held}")
    if options.llama:
        command = [sys.executable, "-c", LLAMA, options.llama, str(options.streams), str(options.port)]
        with running(command, url):
            report("llama.cpp", asyncio.run(load(url, "x", options.streams, seconds, options.tokens)), seconds)
    return 1 if tally.wrong or quarter.wrong or leaks or after > 1.1 * before + 50 else 0


if __name__ == "__main__":
    raise SystemExit(main())
