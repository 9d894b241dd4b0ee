"""Connectors: features of an encoder to slots of the canvas (`mmdiff.protocols.Connector`).

May import: canvas, config, model, protocols.
"""
