"""Readers of labels, one module for each form in which chest X-ray data sets ship them; recognition.py chooses among them."""
