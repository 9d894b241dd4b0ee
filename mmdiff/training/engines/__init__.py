"""What moves weights besides a stage's own optimizer: DeepSpeed, which takes its steps, and the moving average.

May import: backbones, config, model, runs.
"""
