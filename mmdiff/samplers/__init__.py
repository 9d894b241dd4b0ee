"""The one sampler: `loop.sample` writes the open places of a canvas, `rules` decide what and which, step by step."""
