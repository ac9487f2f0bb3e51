"""Typed options of `model.compare`."""

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from wenfang.core.config import ChunkIndex, Corpus, TokenizerFolder
from wenfang.train.config import TrainConfig

if TYPE_CHECKING:  # Importing the decoder's shape imports torch.
    from wenfang.model import DecoderConfig


class CompareConfig(TrainConfig):
    """Train several architectures on the same data with the same budget and seed, and compare them."""

    corpus: Corpus
    """The corpus that all learn from."""
    tokenizer: TokenizerFolder
    """The tokenizer of all."""
    base: dict[str, Any] = Field(default_factory=dict)
    """Fields of the decoder that all have in common, but for `vocab_size` and `context`, which are the stage's."""
    variants: dict[str, dict[str, Any]] = Field(min_length=1)
    """What is compared: by name, the fields in which each differs from `base`."""
    extrapolate: int = Field(default=1, ge=1, le=16)
    """Also measure on rows up to this many times longer; plain rotary embeddings with YaRN and without."""
    index: ChunkIndex | None = None
    """For variants with retro: where neighbours are looked up. All learn packed documents then, not running text."""
    decode_tokens: int = Field(default=64, gt=0)
    """Tokens written to measure the speed of decoding."""
    compile: bool = False
    """Compile the step with torch.compile, which takes half a minute per variant."""

    @model_validator(mode="after")
    def _check_variants(self) -> Self:
        for name, fields in self.variants.items():
            if not name.strip() or "/" in name or name.startswith("."):
                raise ValueError(f"variants: {name!r} cannot be a folder's name")
            taken = sorted({"vocab_size", "context"} & (fields.keys() | self.base.keys()))
            if taken:
                raise ValueError(f"variants.{name}: {taken[0]} is not a variant's own; leave it out")
        return self

    @model_validator(mode="after")
    def _check_index(self) -> Self:
        reads = any("retro" in fields for fields in (self.base, *self.variants.values()))
        if reads != (self.index is not None):
            raise ValueError("variants with retro need index, and index is for them alone")
        if reads and self.extrapolate > 1:
            raise ValueError("index and extrapolate exclude each other")
        return self

    def shape(self, name: str, vocab_size: int) -> "DecoderConfig":
        """The architecture of one variant.

        Raises:
            InputError: its fields do not make a decoder; names the variant and the field.
        """
        from pydantic import ValidationError

        from wenfang.core.errors import InputError
        from wenfang.core.language import say
        from wenfang.model import DecoderConfig

        values = {"vocab_size": vocab_size, "context": self.context, **self.base, **self.variants[name]}
        try:
            return DecoderConfig.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
            raise InputError(
                say(zh=f"variants.{name} 不成架構：{detail}。", en=f"variants.{name} is no decoder: {detail}.")
            ) from None
