"""A model over HTTP, whatever its task: OpenAI's routes, rows of any task, likelihoods, embeddings, and a page.

`fields` reads requests, `canvases` lays them out, `batching` fills many at a time, `texts` and `streams` say what has
become of them; `chat` and `rest` are the routes, `app` puts them together, `server` gives them a port.

May import: canvas, config, data, evals, evaluation, model, protocols, samplers, session.
"""
