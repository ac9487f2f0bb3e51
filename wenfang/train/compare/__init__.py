"""compare: the architecture lab.

Several decoders learn the same rows in the same order from the same seed; how well each did, and what it took, stands
in one table and one plot. The stage is `model.compare`.
"""
