"""The memory of a forward of torch's meta tensors, with LoRA's factors and a few of the layers that are alike.

May import: backbones, sharing.inspection.figures.
"""
