"""Options of a decoder so small that a real process trains it in seconds, saving after every step."""

SHAPE = {
    "context": 64,
    "dtype": "float32",
    "dim": 16,
    "layers": 2,
    "heads": 2,
    "kv-heads": 1,
    "head-dim": 8,
    "hidden": 24,
    "checkpoint-every-s": 1e-6,
}
