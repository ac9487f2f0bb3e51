"""data: raw text becomes a corpus, and a corpus becomes conversations.

Stages `data.prepare` and `data.converse`. Knows files and splits; what verse is, it asks of `text`.
Nothing heavy is imported until a stage runs.
"""
