"""Multi-label classification of chest X-rays, as in NIH ChestX-ray14: from image files and a label table to a report.

`data` prepares a data set, `model` trains an image model on it, `evaluation` scores its predictions, `explain` shows what it used
of an image, and `report` writes the results for readers. train.py and evaluate.py are the commands.
"""
