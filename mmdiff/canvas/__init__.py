"""What training and generation work on: samples (`sample.py`), batches (`batch.py`), their one id space (`vocab.py`).
Rows packed of several documents (`packing.py`), and canvases whose length changes (`relayout.py`). A generation: the
canvas to fill (`prompt.py`), its state (`generation.py`), what is asked of a model (`query.py`), what of it is kept
(`kept.py`), what is noised at a step (`now.py`). Who sees whom: the relation and its masks (`pattern.py`), the patterns
there are (`patterns.py`).

May import: config, diffusion.
"""
