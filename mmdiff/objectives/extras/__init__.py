"""Extras: further modules of a model (`model.extras`, `mmdiff.protocols.Extra`), which objectives of this room train.

May import: config.
"""
