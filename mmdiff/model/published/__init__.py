"""Published weights: of encoders and connectors by name, and multimodal models in the one folder of their authors.

May import: backbones, config, model.tensors, protocols.
"""
