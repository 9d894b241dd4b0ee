"""Episodes of other layouts (HDF5, RLDS, numpy folders) to LeRobot data sets.

May import: encoders.media, tasks.vla.data.
"""
