"""`wenfang model plan`: what a model takes, before anything is allocated."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators
from rich.console import Console
from rich.table import Table

from wenfang.core.language import say

if TYPE_CHECKING:  # Types alone: both import torch.
    from wenfang.core.device import Device
    from wenfang.model import DecoderConfig
    from wenfang.model.plan import InferencePlan
    from wenfang.train.plan import TrainingPlan

_SHAPE = say(
    zh="模型資料夾、GGUF 檔、config.json，或一個寫著 DecoderConfig 欄位的 YAML。",
    en="A model folder, a GGUF file, a config.json, or a YAML file of decoder fields.",
)
_HARDWARE = say(
    zh="here（這台機器，首次量測約三秒）、h100、h200、a100、l4、rtx4090，或一個 YAML 檔。",
    en="here (this machine, measured once), h100, h200, a100, l4, rtx4090, or a YAML file.",
)
_BATCH = say(zh="訓練時每步的列數。", en="Rows of a training step.")
_CONTEXT = say(
    zh="每列的 token 數；不給則為模型的上下文，至多 4096。",
    en="Tokens per row or sequence; the model's context by default, 4096 at most.",
)
_SEQUENCES = say(zh="同時生成的序列數。", en="Sequences generated at the same time.")
_OPTIMIZER = say(zh="最佳化器。", en="Optimiser.")
_RANK = say(zh="LoRA 的秩。", en="Rank of the adapters.")
_COMPILED = say(zh="訓練經 torch.compile。", en="Train through torch.compile.")
_JSON = say(zh="以 JSON 印出。", en="Print JSON.")
_LONGEST = 4096
_Count = Annotated[int, Parameter(validator=validators.Number(gt=0))]


def plan(
    shape: Annotated[Path, Parameter(help=_SHAPE)],
    /,
    *,
    hardware: Annotated[str, Parameter(help=_HARDWARE)] = "here",
    batch: Annotated[_Count, Parameter(help=_BATCH)] = 8,
    context: Annotated[_Count | None, Parameter(help=_CONTEXT)] = None,
    sequences: Annotated[_Count, Parameter(help=_SEQUENCES)] = 1,
    optimizer: Annotated[Literal["muon", "adamw", "adam8bit", "lion", "galore"], Parameter(help=_OPTIMIZER)] = "adamw",
    rank: Annotated[_Count, Parameter(help=_RANK)] = 16,
    compiled: Annotated[bool, Parameter(name="--compile", help=_COMPILED)] = True,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help=_JSON)] = False,
) -> None:
    """Forecast a model's memory, arithmetic and speed before anything is allocated."""
    from wenfang.core.device import find_device
    from wenfang.model.plan import plan_inference, read_shape
    from wenfang.train.config import AdapterConfig, OptimizerConfig
    from wenfang.train.plan import plan_training

    config, device = read_shape(shape), find_device(hardware)
    length = context or min(config.context, _LONGEST)
    inference = [
        plan_inference(config, dtype=dtype, context=length, sequences=sequences) for dtype in ("bfloat16", "float32")
    ]
    ways = {
        "full": AdapterConfig(),
        "lora": AdapterConfig(method="lora", rank=rank),
        "qlora": AdapterConfig(method="lora", base="nf4", rank=rank),
    }
    training = {
        name: plan_training(
            config,
            batch=batch,
            context=length,
            adapter=way,
            optimizer=OptimizerConfig(name=optimizer),
            dtype="bfloat16" if device.bf16_tflops > device.fp32_tflops else "float32",
            compiled=compiled,
        )
        for name, way in ways.items()
    }
    if as_json:
        print(json.dumps(_as_dict(device, inference, training), ensure_ascii=False, indent=2))
        return
    _show(config, device, inference, training)


def _as_dict(device: "Device", inference: "list[InferencePlan]", training: "dict[str, TrainingPlan]") -> dict[str, Any]:
    def fits(memory_bytes: int) -> dict[str, Any]:
        return {"memory_bytes": memory_bytes, "fits": memory_bytes <= device.memory_bytes}

    return {
        "hardware": device.model_dump(),
        "inference": [
            asdict(plan)
            | fits(plan.memory_bytes)
            | {
                "prefill_tokens_per_s": plan.prefill_tokens_per_s(device),
                "decode_tokens_per_s": plan.decode_tokens_per_s(device),
            }
            for plan in inference
        ],
        "training": {
            name: asdict(plan) | fits(plan.memory_bytes) | {"tokens_per_s": plan.tokens_per_s(device)}
            for name, plan in training.items()
        },
    }


def _show(
    config: "DecoderConfig", device: "Device", inference: "list[InferencePlan]", training: "dict[str, TrainingPlan]"
) -> None:
    from wenfang.recipe.figures import size

    console, first, full = Console(), inference[0], training["full"]
    facts = Table(box=None, pad_edge=False, show_header=False)
    for name, value in (
        (say(zh="參數", en="parameters"), f"{first.parameters:,}"),
        (say(zh="每個 token 用到", en="active per token"), f"{first.active_parameters:,}"),
        (say(zh="每個 token 的運算，讀", en="arithmetic per token, read"), _flops(first.prompt_flops_per_token)),
        (say(zh="　　　　　　　　寫", en="… written"), _flops(first.decode_flops_per_token)),
        (say(zh="　　　　　　　　訓練", en="… trained"), _flops(full.flops_per_token)),
        (say(zh="每個 token 的快取", en="cache per token"), size(first.cache_bytes_per_token)),
        (say(zh="每個序列的遞迴狀態", en="recurrent state per sequence"), size(first.state_bytes)),
        (say(zh="硬體", en="hardware"), f"{device.name}, {size(device.memory_bytes)}"),
    ):
        facts.add_row(name, value)
    console.print(facts)
    console.print()
    console.print(_inference_table(device, inference))
    console.print()
    console.print(_training_table(device, training))


def _inference_table(device: "Device", inference: "list[InferencePlan]") -> Table:
    from wenfang.recipe.figures import size

    first = inference[0]
    title = say(
        zh=f"生成：{first.sequences} 個序列，各 {first.context} token",
        en=f"generate: {first.sequences} × {first.context} tokens",
    )
    table = _table(
        title,
        say(zh="權重", en="weights"),
        say(zh="快取", en="cache"),
        say(zh="讀提示", en="prompt"),
        say(zh="記憶體", en="memory"),
        "",
        say(zh="讀 token/s", en="prefill/s"),
        say(zh="寫 token/s", en="decode/s"),
    )
    for plan in inference:
        table.add_row(
            plan.dtype,
            size(plan.weights_bytes),
            size(plan.cache_bytes),
            size(plan.working_bytes),
            size(plan.memory_bytes),
            _verdict(plan.memory_bytes, device),
            f"{plan.prefill_tokens_per_s(device):,.0f}",
            f"{plan.decode_tokens_per_s(device):,.0f}",
        )
    return table


def _training_table(device: "Device", training: "dict[str, TrainingPlan]") -> Table:
    from wenfang.recipe.figures import size

    full = training["full"]
    title = say(
        zh=f"訓練：{full.batch} 列，各 {full.context} token，{full.dtype}",
        en=f"train: {full.batch} × {full.context} tokens, {full.dtype}",
    )
    table = _table(
        title,
        say(zh="權重", en="weights"),
        say(zh="最佳化器", en="optimiser"),
        say(zh="激發與梯度", en="activations, gradients"),
        say(zh="記憶體", en="memory"),
        "",
        "token/s",
    )
    for name, plan in training.items():
        table.add_row(
            name,
            size(plan.weights_bytes),
            size(plan.optimizer_bytes),
            size(plan.working_bytes),
            size(plan.memory_bytes),
            _verdict(plan.memory_bytes, device),
            f"{plan.tokens_per_s(device):,.0f}",
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=not column)
    return table


def _verdict(memory_bytes: int, device: "Device") -> str:
    return "" if memory_bytes <= device.memory_bytes else say(zh="放不下", en="does not fit")


def _flops(count: float) -> str:
    return f"{count / 1e9:,.2f} GFLOP" if count >= 1e8 else f"{count / 1e6:,.2f} MFLOP"
