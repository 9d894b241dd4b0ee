"""Objectives: what is trained. See `mmdiff.protocols.Objective`."""
