"""What a stage expects to cost, before it runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Forecast:
    """A stage's expected cost on this machine: close enough to refuse what cannot fit and to plan a coffee.

    A forecast is made from the config alone: the inputs it names may not exist yet.
    """

    seconds: float
    """Wall time."""
    memory_bytes: int
    """Largest resident size of the process."""
    disk_bytes: int
    """Space its output takes, checkpoints of a run in progress included."""
    limit_bytes: int | None = None
    """What of memory there is where the stage computes; None for the machine's own."""
    lower: tuple[str, ...] = ()
    """The options that decide the memory, as `name=value`, in the order in which to lower them."""
