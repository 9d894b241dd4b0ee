"""From rows to batches: which row comes when (`stream.py`), samples on one canvas (`collate.py`), batches by cost, the
processes that do it (`processes.py`).

May import: canvas, config, diffusion, protocols.
"""
