"""The model card: what a model folder says about itself."""

import json

from wenfang.core.artifact import Summary
from wenfang.core.config import Config
from wenfang.core.hardware import detect


def model_card(stage: str, config: Config, summary: Summary) -> str:
    """Markdown with the metadata block Hugging Face reads, the settings and the measured results."""
    hardware = detect()
    results = "\n".join(f"| {name} | {value} |" for name, value in summary.items())
    settings = json.dumps(config.model_dump(mode="json"), ensure_ascii=False, indent=2)
    return f"""---
language: zh
library_name: transformers
pipeline_tag: text-generation
---
# {stage}

Trained with Wenfang 文房 on {hardware.processor} ({hardware.cores} cores).

| result | value |
| --- | --- |
{results}

```json
{settings}
```
"""
