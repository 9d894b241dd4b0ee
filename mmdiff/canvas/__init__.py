"""What generation and training work on: samples (`sample.py`), batches (`batch.py`) and their one id space (`vocab.py`).

May import: nothing.
"""
