"""OLMo 2: norms on the sublayers' outputs; queries and keys normalised over all heads together."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families import hf, llama
from wenfang.model.families.family import Family
from wenfang.model.families.tensor_map import Link


def _links(_: DecoderConfig) -> tuple[Link, ...]:
    return (
        Link("layers.*.mixer_post_norm", "model.layers.*.post_attention_layernorm"),
        Link("layers.*.mlp_post_norm", "model.layers.*.post_feedforward_layernorm"),
        *hf.LINKS,
    )


FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    fields=hf.FIELDS,
    defaults=hf.DEFAULTS | {"rms_norm_eps": 1e-5},
    fixed=hf.FIXED,
    traits={"qk_norm": "projection", "norm_placement": "post"},
    links=_links,
    read=llama.FAMILY.read,
    write=llama.FAMILY.write,
)
