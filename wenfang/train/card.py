"""The model card: what a model folder says about itself."""

import json
from pathlib import Path

import torch

from wenfang.core.artifact import MANIFEST, Summary, read_manifest
from wenfang.core.config import Config, input_fields
from wenfang.core.hardware import detect
from wenfang.core.language import say
from wenfang.core.licence import read_licence
from wenfang.core.plot import Curve, Panel, write_plot
from wenfang.train.placement import choose

CURVES = "curves.svg"
LEARNED = ("corpus", "conversations", "model")
"""Kinds of input whose licence a model inherits."""
MADE_FROM = ("## 來源", "## Made from")
Metrics = list[dict[str, float]]


def model_card(stage: str, config: Config, summary: Summary, out: Path) -> str:
    """Markdown with the metadata block Hugging Face reads: hardware and cost, data and licences, curves, results,
    settings. Draws `curves.svg` in `out` from the stage's `metrics.jsonl`, where there is one.
    """
    hardware, metrics = detect(), _metrics(out)
    kinds = input_fields(type(config))
    sources = [(name, getattr(config, name)) for name, field in kinds.items() if field.kind in LEARNED]
    sections = [
        f"# {stage}",
        say(
            zh=f"以 Wenfang 文房訓練，機器：{_gpu(config)}{hardware.processor}（{hardware.cores} 核，"
            f"{hardware.memory_bytes / 2**30:.0f} GiB）{_cost(metrics)}。",
            en=f"Trained with Wenfang 文房 on {_gpu(config)}{hardware.processor} ({hardware.cores} cores, "
            f"{hardware.memory_bytes / 2**30:.0f} GiB){_cost(metrics)}.",
        ),
    ]
    made_from = "\n".join(_source(name, folder) for name, folder in sources if folder is not None)
    sections.append(say(zh=MADE_FROM[0], en=MADE_FROM[1]) + f"\n{made_from}")
    if metrics:
        _draw(out / CURVES, metrics)
        sections.append(say(zh="## 曲線", en="## Curves") + f"\n![loss, speed]({CURVES})")
    results = "\n".join(f"| {name} | {value} |" for name, value in summary.items())
    sections.append(
        say(zh="## 結果\n| 結果 | 值 |", en="## Results\n| result | value |") + f"\n| --- | --- |\n{results}"
    )
    settings = json.dumps(config.model_dump(mode="json"), ensure_ascii=False, indent=2)
    sections.append(say(zh="## 設定", en="## Settings") + f"\n```json\n{settings}\n```")
    front = "---\nlanguage: zh\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
    return front + "\n\n".join(sections) + "\n"


def _gpu(config: Config) -> str:
    """The GPU that was trained on, before the processor; empty where there was none."""
    device = choose(getattr(config, "device", "cpu"))
    return f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""


def _source(name: str, folder: Path) -> str:
    """One input: what made it, how much there is, under which licence its own card puts it, and what that was made
    from."""
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else None
    origin = f"{manifest.stage}, {manifest.fingerprint}" if manifest else folder.name
    amounts = manifest.summary.items() if manifest else ()
    figures = [f"{what.replace('_', ' ')} {value:,}" for what, value in amounts if isinstance(value, int)]
    licence = read_licence(folder) or say(zh="未載明", en="not stated")
    told = f"- {name} ({origin}): " + ", ".join([say(zh=f"授權 {licence}", en=f"licence {licence}"), *figures])
    return "\n".join([told, *(_origins(folder) if name == "model" else ())])


def _origins(model: Path) -> list[str]:
    """What a model's own card says that it was made from, one step further in."""
    try:
        text = (model / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    for heading in MADE_FROM:
        _, found, rest = text.partition(f"{heading}\n")
        if found:
            return [f"  {line}" for line in rest.partition("\n\n")[0].splitlines()]
    return []


def _metrics(out: Path) -> Metrics:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _cost(metrics: Metrics) -> str:
    seconds = max((line["seconds"] for line in metrics if "seconds" in line), default=0.0)
    if not seconds:
        return ""
    if seconds < 60:
        return say(zh=f"，費時 {seconds:.1f} 秒", en=f" in {seconds:.1f} seconds")
    return say(zh=f"，費時 {seconds / 60:.1f} 分鐘", en=f" in {seconds / 60:.1f} minutes")


def _draw(path: Path, metrics: Metrics) -> None:
    measured = any("bits_per_character" in line for line in metrics)
    unit = "bits_per_character" if measured else "loss"
    labels = {unit: say(zh="訓練", en="training"), f"validation_{unit}": say(zh="驗證", en="validation")}
    step = say(zh="步", en="step")
    loss = [curve for name, label in labels.items() if (curve := _curve(label, name, metrics)).x]
    panels = [Panel(step, unit.replace("_", " "), loss)]
    panels += [Panel(step, "tokens/s", [speed]) for speed in [_curve("", "tokens_per_s", metrics)] if speed.x]
    write_plot(path, panels)


def _curve(label: str, name: str, metrics: Metrics) -> Curve:
    points = [(line["step"], line[name]) for line in metrics if name in line and "step" in line]
    return Curve(label, [x for x, _ in points], [y for _, y in points])
