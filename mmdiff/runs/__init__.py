"""What a run leaves on disk: its folder, its checkpoints, and files of records that an interrupted command resumes.

May import: backbones, config, model.
"""
