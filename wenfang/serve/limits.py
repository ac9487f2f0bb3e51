"""How much one request may weigh and how long it may take. One value holds them all, so that tests can be small."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of the server as a whole; those of a key stand beside the key."""

    body_bytes: int = 1 << 20
    """Far more than any conversation that fits a context; larger bodies are refused."""
    header_bytes: int = 16 << 10
    body_s: float = 30.0
    """How long a client may take to send a body."""
    answer_s: float = 600.0
    """How long an answer may take; what is written by then ends with an error."""
    requests: int = 256
    """Requests in progress at once, whatever they ask for."""


LIMITS = Limits()
