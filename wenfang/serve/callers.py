"""Who asks, and how much they still may: requests, answers at once, and tokens of each key."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from fastapi import Request

from wenfang.core.language import say
from wenfang.serve.errors import ApiError

MINUTE_S = 60.0


@dataclass(frozen=True)
class Allowance:
    """What a key may use; None is no limit."""

    requests_per_minute: int | None = None
    concurrent: int | None = None
    tokens_per_minute: int | None = None


class Bucket:
    """An amount that fills up steadily to what a minute brings. What was taken may exceed it once: the debt is
    worked off first."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._level = float(per_minute)
        self._at = time.monotonic()

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` can be taken; 0 when it can be now."""
        now = time.monotonic()
        self._level = min(self._per_minute, self._level + (now - self._at) * self._per_minute / MINUTE_S)
        self._at = now
        return max(0.0, (amount - self._level) * MINUTE_S / self._per_minute)

    def take(self, amount: float) -> None:
        """Use some of it."""
        self._level -= amount


@dataclass
class Caller:
    """One key in use, or everybody where no keys are asked for. Lives on the event loop."""

    name: str = "anyone"
    allowance: Allowance = field(default_factory=Allowance)
    active: int = 0

    def __post_init__(self) -> None:
        a = self.allowance
        self._requests = None if a.requests_per_minute is None else Bucket(a.requests_per_minute)
        self._tokens = None if a.tokens_per_minute is None else Bucket(a.tokens_per_minute)

    def admit(self) -> AbstractContextManager[None]:
        """A place for one request, given back with the block.

        Raises:
            ApiError: 429, with the seconds after which it is worth trying again.
        """
        if self.allowance.concurrent is not None and self.active >= self.allowance.concurrent:
            raise _too_many(1, zh=f"同時最多 {self.active} 個請求", en=f"at most {self.active} requests at once")
        for bucket, zh, en in (
            (self._requests, "每分鐘的請求數", "requests per minute"),
            (self._tokens, "每分鐘的詞元數", "tokens per minute"),
        ):
            if bucket is not None and (wait_s := bucket.wait_s(1)) > 0:
                raise _too_many(int(wait_s) + 1, zh=f"{zh}已用完", en=f"no {en} left")
        if self._requests is not None:
            self._requests.take(1)
        return self._busy()

    def spend(self, tokens: int) -> None:
        """Count tokens read and written."""
        if self._tokens is not None:
            self._tokens.take(tokens)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1


def caller_of(request: Request) -> Caller:
    """Who sent a request that the gate let in."""
    caller = request.scope["wenfang.caller"]
    if not isinstance(caller, Caller):
        raise TypeError(type(caller))
    return caller


def _too_many(retry_after_s: int, *, zh: str, en: str) -> ApiError:
    return ApiError(
        say(
            zh=f"這把金鑰的額度：{zh}。請在 {retry_after_s} 秒後再試。",
            en=f"Rate limit of this key: {en}. Try again in {retry_after_s} s.",
        ),
        status=429,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after_s=retry_after_s,
    )
