"""From rows to batches: which row comes when (`stream.py`), samples on one canvas (`collate.py`), batches by cost.

May import: canvas, config, diffusion, protocols.
"""
