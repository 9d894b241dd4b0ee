"""Encoders, one per file: raw numbers of one kind of media to features (`mmdiff.protocols.Encoder`).

May import: backbones, canvas, config, connectors, model.
"""
