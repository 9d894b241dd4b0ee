"""Encoders, one per file: raw numbers of one kind of media to features (`mmdiff.protocols.Encoder`). The names that
wav2vec's checkpoints have for things are in a file beside it.

May import: backbones, canvas, config, connectors, model.
"""
