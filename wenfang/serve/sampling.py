"""What every generating request may say about how tokens are chosen, in OpenAI's and the engine's own names."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.core.openai import MAX_TEMPERATURE
from wenfang.serve.errors import ApiError

if TYPE_CHECKING:
    from wenfang.engine import SamplingParams
    from wenfang.grammar import Grammar

MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_BIASES = 1024
MAX_CHOICES = 16
MAX_TOKENS = 2**31 - 1

_ENGINE = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "top_n_sigma", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "dry_multiplier", "dry_base", "dry_allowed_length", "xtc_probability", "xtc_threshold",
    "mirostat_tau", "mirostat_eta",
)  # fmt: skip
"""Fields handed to the engine as they are."""


def without_nulls(data: Any) -> Any:
    """In OpenAI's interface a null stands for an absent parameter."""
    return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


class Strict(BaseModel):
    """No coercion, no unknown names; a null is as good as nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    _drop_nulls = model_validator(mode="before")(without_nulls)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[
    list[Stop],
    BeforeValidator(_listed, json_schema_input_type=Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)]),
]


class Sampling(Strict):
    """How tokens are chosen. Defaults draw from the model's own distribution."""

    temperature: float = Field(1.0, ge=0, le=MAX_TEMPERATURE)
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Only the likeliest tokens with this total probability."""
    top_k: int | None = Field(None, ge=1, lt=2**31)
    """Only the k likeliest tokens; leave out for all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Only tokens at least this share of the likeliest one's probability."""
    typical_p: float = Field(1.0, gt=0, le=1)
    top_n_sigma: float = Field(0.0, ge=0, le=100)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    dry_multiplier: float = Field(0.0, ge=0, le=100)
    dry_base: float = Field(1.75, ge=1, le=100)
    dry_allowed_length: int = Field(2, ge=1, lt=2**31)
    xtc_probability: float = Field(0.0, ge=0, le=1)
    xtc_threshold: float = Field(0.1, ge=0, le=0.5)
    mirostat_tau: float = Field(0.0, ge=0, le=100)
    mirostat_eta: float = Field(0.1, ge=0, le=1)
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] = Field(
        default={}, max_length=MAX_BIASES
    )
    """Added to the logits of these token ids."""
    stop: Stops = Field([], max_length=MAX_STOPS)
    """Strings that end the answer and are not part of it; one may stand alone, without a list."""
    seed: int | None = Field(None, ge=0, lt=2**63 - MAX_CHOICES)
    """Same seed, same text; choice number i is drawn with seed + i."""

    def params(
        self,
        *,
        vocab_size: int,
        max_tokens: int,
        choice: int = 0,
        logprobs: int | None = None,
        prompt_logprobs: bool = False,
        grammar: "Grammar | None" = None,
    ) -> "SamplingParams":
        """What the engine is asked for one choice.

        Raises:
            ApiError: a token outside the vocabulary, or values that contradict each other.
        """
        from wenfang.engine import SamplingParams

        bias = {int(token): value for token, value in self.logit_bias.items()}
        if len(bias) < len(self.logit_bias):  # As 1 and 01.
            raise ApiError(
                say(zh="'logit_bias' 有詞元出現兩次。", en="'logit_bias' names a token twice."),
                param="logit_bias",
                code="invalid_value",
            )
        if outside := [token for token in bias if token >= vocab_size]:
            raise ApiError(
                say(
                    zh=f"'logit_bias' 的詞元 {outside[0]} 不在詞彙表裡（共 {vocab_size} 個）。",
                    en=f"'logit_bias' names token {outside[0]}, but the vocabulary has {vocab_size}.",
                ),
                param="logit_bias",
                code="invalid_value",
            )
        values = {name: getattr(self, name) for name in _ENGINE if name in self.model_fields_set}
        try:
            return SamplingParams(
                **values,
                logit_bias=bias,
                stop=tuple(self.stop),
                seed=None if self.seed is None else self.seed + choice,
                max_tokens=max_tokens,
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
                grammar=grammar,
            )
        except InputError as error:
            raise ApiError(str(error), code="invalid_value") from None
