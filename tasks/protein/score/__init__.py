"""Log-probabilities of residues, sequences and mutants, and scans of mutations against measurements.

May import: the core, tasks.protein.data, tasks.protein.residues, tasks.protein.session, tasks.protein.task.
"""
