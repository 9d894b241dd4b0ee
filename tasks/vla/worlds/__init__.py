"""Simulators behind one interface: Meta-World, LIBERO, and a small world of our own.

May import: canvas, config, protocols.
"""
