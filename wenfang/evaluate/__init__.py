"""evaluate: how good a model is, measured against people and against chance.

Reads models through `engine` and `model`; writes a folder of figures and samples. May import `engine`, `model`,
`tokenizer`, `data`, `text` and `core`.
"""
