"""What tasks share: rows of questions and answers, chat templates, multiple choice, controls.

May import: mmdiff and encoders, no task.
"""
