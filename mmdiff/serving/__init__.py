"""A model over HTTP, whatever its task: OpenAI's routes, rows of any task, likelihoods, embeddings, and a page.

`guard` bounds who may ask, how long and how much.

May import: nothing.
"""
