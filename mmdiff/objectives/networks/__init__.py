"""Networks: extras of a model that come to hidden states otherwise than by one run of the backbone, and their losses.

May import: canvas, config, diffusion, model, objectives, protocols.
"""
