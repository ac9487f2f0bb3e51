"""mixers: how positions exchange information without attention, one file per kind.

Each mixer has a parallel form over whole (packed) sequences and a recurrent form that carries a small state;
`mix` picks one by the number of positions and both give the same outputs. The state's tensors begin with the batch
dimension. Nothing here knows where states are kept: that is the memory's.
"""
