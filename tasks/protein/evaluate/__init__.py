"""Metrics of designs and of mask filling, and the report about them.

May import: the core, tasks.protein.data, tasks.protein.design, tasks.protein.residues.
"""
