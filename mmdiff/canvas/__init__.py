"""What training and generation work on: samples (`sample.py`), batches (`batch.py`), their one id space (`vocab.py`).
And who sees whom on a canvas: the relation and its masks (`pattern.py`), the patterns there are (`patterns.py`).

May import: config, diffusion.
"""
