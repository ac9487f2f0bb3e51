"""train: the one loop that trains everything, and the stages that feed it.

A stage turns its data into `Packed` rows; the loop owns optimiser, schedule, checkpoints and reporting.
May import `model`, `tokenizer`, `data`, `engine`, `text` and `core`.
"""
