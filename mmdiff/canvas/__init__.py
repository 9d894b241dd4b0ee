"""What training and generation work on: samples (`sample.py`), batches (`batch.py`), their one id space (`vocab.py`).

May import: nothing.
"""
