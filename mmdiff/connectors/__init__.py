"""Connectors: features of an encoder to slots of the canvas. See `mmdiff.protocols.Connector`."""
