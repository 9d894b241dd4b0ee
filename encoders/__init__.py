"""Encoders, one file each: raw numbers of one kind of media to features (`mmdiff.protocols.Encoder`).

May import: backbones, canvas, config, connectors, model.
"""
