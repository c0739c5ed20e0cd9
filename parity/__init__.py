"""Our scorers against the packages they re-implement: the same weights, the same real report pairs.

`make parity` builds both environments and runs `parity.compare` in ours. That has `parity.weights` make
weights and `parity.upstream` score with the packages in .venv-parity, and prints how far they are apart.
"""
