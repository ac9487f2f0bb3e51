"""What a caller may ask of a generation, checked once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.core.openai import MAX_TEMPERATURE
from wenfang.grammar import Grammar

MAX_LOGPROBS = 20
"""Most alternatives reported for a token."""

_UNBOUNDED = 1 << 31

_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, MAX_TEMPERATURE),
    "top_k": (0, _UNBOUNDED),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "top_n_sigma": (0.0, 100.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "dry_multiplier": (0.0, 100.0),
    "dry_base": (1.0, 100.0),
    "dry_allowed_length": (1, _UNBOUNDED),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 0.5),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 1.0),
    "max_tokens": (1, _UNBOUNDED),
    "seed": (0, (1 << 63) - 1),
    "logprobs": (0, MAX_LOGPROBS),
}

_POSITIVE = ("top_p", "typical_p")

TRUNCATION_OFF: dict[str, float] = {
    "top_n_sigma": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "xtc_probability": 0.0,
}
"""The truncation rules, each with the value that switches it off."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """What one request asks of the sampler. The defaults draw from the model's own distribution.

    Raises:
        InputError: a value is out of range or two contradict each other; the message names them.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Only the k likeliest tokens; 0 means all."""
    top_p: float = 1.0
    """Nucleus: the smallest set of likeliest tokens with this total probability (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Only tokens at least this share of the likeliest one's probability (Nguyen et al. 2024)."""
    typical_p: float = 1.0
    """The tokens whose surprise is nearest the entropy, to this total probability (Meister et al. 2023)."""
    top_n_sigma: float = 0.0
    """Only logits within n standard deviations of the highest; 0 means all (Tang et al. 2024)."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in the prompt or the text (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token the text already holds (OpenAI)."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time the text holds it (OpenAI)."""
    dry_multiplier: float = 0.0
    """DRY: strength of the penalty on a token that would prolong a repetition; 0 is off."""
    dry_base: float = 1.75
    """DRY: growth of the penalty with each further repeated token."""
    dry_allowed_length: int = 2
    """DRY: repetitions up to this many tokens are free."""
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*", "：", "「", "」")
    """DRY: no repetition is counted across a token that is one of these."""
    xtc_probability: float = 0.0
    """XTC: how often all but the least likely of the top choices are excluded; 0 is off."""
    xtc_threshold: float = 0.1
    """XTC: the probability from which on a token is a top choice."""
    mirostat_tau: float = 0.0
    """Mirostat 2: the surprise in bits that the text is steered to; 0 is off (Basu et al. 2021)."""
    mirostat_eta: float = 0.1
    """Mirostat 2: learning rate of the steering."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    max_tokens: int | None = None
    """Longest completion in tokens; None means to the end of the context."""
    stop: tuple[str, ...] = ()
    """Strings that end the completion and are not part of it."""
    seed: int | None = None
    """Same seed and prompt: same text, whatever else is in the batch. None draws a fresh one."""
    logprobs: int | None = None
    """Report each token's log-probability under the bare model, and this many likeliest alternatives."""
    prompt_logprobs: bool = False
    """Report them for the prompt's tokens too; needs `logprobs`."""
    grammar: Grammar | None = None
    """What the text must be: only tokens that it allows are drawn. Excludes `stop`."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise InputError(
                    say(
                        zh=f"`{name}` 是 {value!r}，必須介於 {low} 與 {high} 之間。",
                        en=f"`{name}` is {value!r}; it must lie between {low} and {high}.",
                    )
                )
        for name in _POSITIVE:
            if getattr(self, name) == 0.0:
                raise InputError(say(zh=f"`{name}` 必須大於 0。", en=f"`{name}` must be greater than 0."))
        for name in ("stop", "dry_sequence_breakers"):
            if not all(getattr(self, name)):
                raise InputError(say(zh=f"`{name}` 不能有空字串。", en=f"`{name}` must not hold an empty string."))
        self._check_bias()
        self._check_together()

    def _check_bias(self) -> None:
        for token, bias in self.logit_bias.items():
            if token < 0 or not (math.isfinite(bias) and -100 <= bias <= 100):
                raise InputError(
                    say(
                        zh=f"`logit_bias` 的 {token!r}: {bias!r} 無效：鍵是詞元編號，值介於 -100 與 100 之間。",
                        en=f"`logit_bias` holds {token!r}: {bias!r}; keys are token ids, values lie in -100 … 100.",
                    )
                )

    def _check_together(self) -> None:
        clash = [name for name, off in TRUNCATION_OFF.items() if getattr(self, name) != off]
        if self.mirostat_tau and clash:
            raise InputError(
                say(
                    zh=f"`mirostat_tau` 自己決定截斷，不能與 `{clash[0]}` 同時使用。",
                    en=f"`mirostat_tau` chooses its own truncation and cannot be combined with `{clash[0]}`.",
                )
            )
        drawing = [name for name in ("mirostat_tau", "xtc_probability") if getattr(self, name)]
        if drawing and not self.temperature:
            raise InputError(
                say(
                    zh=f"`{drawing[0]}` 只影響抽樣，`temperature` 必須大於 0。",
                    en=f"`{drawing[0]}` is about drawing tokens; it needs a `temperature` above 0.",
                )
            )
        if self.grammar is not None and self.stop:
            raise InputError(
                say(
                    zh="`stop` 會截斷必須符合 `grammar` 的文字，兩者不能同時使用。",
                    en="`stop` would cut off a text that must fulfil its `grammar`; give only one of them.",
                )
            )
        if self.prompt_logprobs and self.logprobs is None:
            raise InputError(
                say(zh="`prompt_logprobs` 需要 `logprobs`。", en="`prompt_logprobs` needs `logprobs` as well.")
            )
