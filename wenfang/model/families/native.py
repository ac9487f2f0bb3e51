"""Our own format, for decoders that no Hugging Face family can hold: the config as it is, the tensors under our names.

`transformers` does not open it. A model is written so only where its config asks for it by `family`.
"""

from wenfang.model.config import DecoderConfig
from wenfang.model.families.family import Family, Values
from wenfang.model.families.tensor_map import Link

MODULES = ("embed_tokens", "embed_positions", "embed_norm", "layers", "norm", "ahead", "lm_head")


def _write(config: DecoderConfig) -> Values:
    return {"decoder": config.model_dump(mode="json", exclude={"family"})}


FAMILY = Family(
    model_type="wenfang",
    architecture="WenfangDecoder",
    fields={"layers": "layers"},
    links=lambda _: tuple(Link(module, module) for module in MODULES),
    read=lambda values: dict(values["decoder"]),
    write=_write,
)
