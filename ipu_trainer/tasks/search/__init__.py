"""The command `ipu-trainer search TASK`: ranges to search in, and the files that a study leaves."""
