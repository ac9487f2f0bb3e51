"""Generation on the CPU: Wenfang's engine beside llama.cpp and transformers, tokens per second, in one run.

    .venv/bin/python benchmarks/engine.py model.gguf                    every measurement
    .venv/bin/python benchmarks/engine.py model.gguf --only int8 q8_0   some contenders

Needs `xllamacpp` and `transformers`. The model is any GGUF file; contenders get it as int8 and int4 here, Q8_0 and Q4_0
at llama.cpp's, bf16 at transformers', each in a process of its own. Rounds alternate between the contenders, and
medians are compared, as neighbours on the machine disturb everybody alike. Prompts are random tokens, so that no cache
helps but where a prefix is shared on purpose: there the time to the first token is compared with that of a prompt of
which nothing was read before.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wenfang.core.hardware import peak_memory_bytes

OURS, LLAMA, TRANSFORMERS = ("int8", "int4"), ("q8_0", "q4_0"), "bf16"
NAMES = (*OURS, *LLAMA, TRANSFORMERS)
CASES = {"decode, batch 1": (1, 16, 128), "decode, batch 8": (8, 16, 128), "prefill 512": (1, 512, 1)}
"""Requests at once, tokens of each prompt, tokens written."""
PREFIX, REST = 1000, 16
"""Tokens that two prompts share, and those that follow in each."""
TARGETS = {
    "decode, batch 1": ((("int8", "q8_0"), 1.5), (("int4", "q4_0"), 1.25)),
    "decode, batch 8": ((("int8", "q4_0"), 3.0), (("int4", "q4_0"), 3.0)),
    "prefill 512": (*(((ours, theirs), 1.5) for ours in OURS for theirs in LLAMA), (("int8", TRANSFORMERS), 1.2)),
}
Generate = Callable[[list[list[int]], int], object]


def wenfang(path: Path, quantization: str) -> Generate:
    from wenfang.engine import Engine, SamplingParams

    assert quantization in ("int8", "int4")
    engine = Engine.load(path, max_batch=8, quantize=quantization)
    bias = {engine.tokenizer.end_id: -100.0}  # Write on to the last token.
    return lambda prompts, tokens: engine.generate(
        prompts, SamplingParams(temperature=0.0, max_tokens=tokens, logit_bias=bias)
    )


def llama_cpp(path: Path, threads: int) -> Generate:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.port, params.n_gpu_layers = 8 * 1024, 8, 0, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def post(prompt: list[int], tokens: int) -> object:
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        url = server.listening_address + "/completion"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=300) as reply:
            return json.load(reply)

    def generate(prompts: list[list[int]], tokens: int) -> object:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: post(prompt, tokens), prompts))

    return generate


def transformers(path: Path) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()

    def generate(prompts: list[list[int]], tokens: int) -> object:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            return model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=0,
            )

    return generate


def contend(path: Path, name: str, threads: int) -> None:
    """Serve timings on demand: rows, prompt length, tokens to write and shared prefix on each line of standard input;
    seconds and peak memory back."""
    import torch

    torch.set_num_threads(threads)
    if name in OURS:
        generate = wenfang(path, name)
    else:
        generate = llama_cpp(path, threads) if name in LLAMA else transformers(path)
    draw = random.Random(0)
    prefix: list[int] = []
    generate([_tokens(draw, 16)], 4)
    print("ready", flush=True)
    for line in sys.stdin:
        rows, length, tokens, shared = json.loads(line)
        prompts = [prefix[:shared] + _tokens(draw, length - shared) for _ in range(rows)]
        prefix = prompts[0]
        start = time.perf_counter()
        generate(prompts, tokens)
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, peak_memory_bytes()]), flush=True)


def _tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(100, 5000) for _ in range(count)]


def exchange(process: "subprocess.Popen[str]", question: str | None) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if question is not None:
        process.stdin.write(question + "\n")
        process.stdin.flush()
    for line in process.stdout:
        if line.startswith(("ready", "[")):
            return line
    raise SystemExit("a contender ended early")


def ask(process: "subprocess.Popen[str]", *question: int) -> tuple[float, int]:
    """Seconds and peak memory in bytes of rows, prompt length, tokens to write and shared prefix."""
    seconds, memory = json.loads(exchange(process, json.dumps(question)))
    return seconds, memory


def report(rates: dict[tuple[str, str], float], names: list[str]) -> None:
    for case, targets in TARGETS.items():
        print(f"{case:18}" + "".join(f"{name:>6} {rates[case, name]:7.1f}" for name in names))
        for (ours, theirs), target in targets:
            if ours in names and theirs in names:
                ratio = rates[case, ours] / rates[case, theirs]
                print(f"{'':18}{ours} / {theirs}: {ratio:.2f} (target {target})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contend", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contend:
        contend(args.model, args.contend, args.threads)
        return
    from wenfang.model.gguf import export_gguf, import_gguf

    with tempfile.TemporaryDirectory() as work:
        import torch

        folder = Path(work) / "model"
        import_gguf(args.model, folder, dtype=torch.bfloat16)
        processes = {}
        for name in args.only:
            path = folder
            if name in LLAMA:
                path = Path(work) / f"{name}.gguf"
                export_gguf(folder, path, dtype=name)
            command = [sys.executable, __file__, str(path), "--contend", name, "--threads", str(args.threads)]
            processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for process in processes.values():
            exchange(process, None)
        rates, memory = {}, dict.fromkeys(args.only, 0)
        for case, (rows, length, tokens) in CASES.items():
            times: dict[str, list[float]] = {name: [] for name in args.only}
            for _ in range(args.rounds):
                for name, process in processes.items():
                    seconds, memory[name] = ask(process, rows, length, tokens, 0)
                    times[name].append(seconds)
            counted = length if tokens == 1 else rows * tokens
            rates |= {(case, name): counted / statistics.median(times[name]) for name in args.only}
        report(rates, args.only)
        for name in (name for name in args.only if name in OURS):
            unread, known = [], []
            for _ in range(args.rounds):
                unread.append(ask(processes[name], 1, PREFIX + REST, 1, 0)[0])
                known.append(ask(processes[name], 1, PREFIX + REST, 1, PREFIX)[0])
            first, again = statistics.median(unread), statistics.median(known)
            print(
                f"shared prefix     {name}: first token after {again * 1e3:.1f} ms, unread {first * 1e3:.1f} ms: "
                f"{again / first:.0%} (target 10%)"
            )
        print(f"{'peak memory, MB':18}" + "".join(f"{name:>6} {memory[name] / 1e6:7.0f}" for name in args.only))
        for process in processes.values():
            process.kill()


if __name__ == "__main__":
    main()
