"""Documents, tokenizers and small models, for the tasks on text."""
