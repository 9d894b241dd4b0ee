"""Log-probabilities of residues, sequences and mutants, and scans of mutations against measurements.

May import: tasks.protein.data and below.
"""
