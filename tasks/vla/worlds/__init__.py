"""Simulators behind one interface: Meta-World, LIBERO, and a small world of our own.

May import: mmdiff, encoders; nothing of tasks.vla.
"""
