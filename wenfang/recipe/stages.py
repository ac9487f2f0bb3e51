"""Every stage there is, in one table: what a recipe may `use` and what the command line offers as a verb.

To add a stage, write its `Config`, `run` and `forecast` and add a line here, and its Chinese to
`wenfang.cli.chinese`. Nothing registers itself.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:  # Types alone: the command line reads this table each time it starts.
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from wenfang.core.artifact import Summary
    from wenfang.core.config import Config
    from wenfang.core.forecast import Forecast
    from wenfang.core.report import Reporter

    StageFunction = Callable[[Any, Path, Reporter], Summary]
    ForecastFunction = Callable[[Any], Forecast]


@dataclass(frozen=True)
class Stage:
    """One kind of work. `config`, `run` and `forecast` are `module:attribute`, imported when first needed."""

    name: str
    """`room.verb`: what a recipe writes after `uses:`, and the words of the command."""
    kind: str
    """Kind of the artifact it makes."""
    config: str
    """The `Config` class; its module imports nothing heavy."""
    run: str
    """`(config, out, report) -> Summary`."""
    forecast: str
    """`(config) -> Forecast`; the config's inputs may not exist yet."""
    version: int
    """Raised when the code changes what the stage makes, so that outputs of older code are not reused."""
    parallel: bool = False
    """Several processes can share the work (`--nproc`, torchrun)."""

    def config_class(self) -> "type[Config]":
        """The typed options of this stage."""
        return cast("type[Config]", _resolve(self.config))

    def function(self) -> "StageFunction":
        """The work itself; importing it may take seconds."""
        return cast("StageFunction", _resolve(self.run))

    def forecast_function(self) -> "ForecastFunction":
        """What estimates the work's cost."""
        return cast("ForecastFunction", _resolve(self.forecast))


def _resolve(target: str) -> object:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


_TABLE = (
    Stage(
        name="data.prepare",
        kind="corpus",
        config="wenfang.data.prepare:PrepareConfig",
        run="wenfang.data.prepare:run",
        forecast="wenfang.data.prepare:forecast",
        version=1,
    ),
    Stage(
        name="data.converse",
        kind="conversations",
        config="wenfang.data.converse:ConverseConfig",
        run="wenfang.data.converse:run",
        forecast="wenfang.data.converse:forecast",
        version=1,
    ),
    Stage(
        name="data.index",
        kind="index",
        config="wenfang.data.index:IndexConfig",
        run="wenfang.data.index:run",
        forecast="wenfang.data.index:forecast",
        version=1,
    ),
    Stage(
        name="tokenizer.train",
        kind="tokenizer",
        config="wenfang.tokenizer.train:TokenizerConfig",
        run="wenfang.tokenizer.train:run",
        forecast="wenfang.tokenizer.train:forecast",
        version=1,
    ),
    Stage(
        name="train.pretrain",
        kind="model",
        config="wenfang.train.config:PretrainConfig",
        run="wenfang.train.pretrain:run",
        forecast="wenfang.train.forecast:forecast_pretrain",
        version=1,
        parallel=True,
    ),
    Stage(
        name="train.sft",
        kind="model",
        config="wenfang.train.config:SftConfig",
        run="wenfang.train.sft:run",
        forecast="wenfang.train.forecast:forecast_sft",
        version=1,
        parallel=True,
    ),
    Stage(
        name="train.extend-context",
        kind="model",
        config="wenfang.train.config:ExtendContextConfig",
        run="wenfang.train.extend_context:run",
        forecast="wenfang.train.forecast:forecast_extend_context",
        version=1,
    ),
    Stage(
        name="train.merge-adapter",
        kind="model",
        config="wenfang.train.config:MergeAdapterConfig",
        run="wenfang.train.merge_adapter:run",
        forecast="wenfang.train.merge_adapter:forecast",
        version=1,
    ),
    Stage(
        name="model.compare",
        kind="comparison",
        config="wenfang.train.compare.config:CompareConfig",
        run="wenfang.train.compare.stage:run",
        forecast="wenfang.train.compare.stage:forecast",
        version=1,
    ),
    Stage(
        name="evaluate.verse",
        kind="evaluation",
        config="wenfang.evaluate.config:VerseConfig",
        run="wenfang.evaluate.verse:run",
        forecast="wenfang.evaluate.config:forecast",
        version=1,
    ),
)

STAGES: Mapping[str, Stage] = MappingProxyType({stage.name: stage for stage in _TABLE})
