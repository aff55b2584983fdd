"""From the bytes of a file to 8-bit gray levels: DICOM, windows, and what no image file may be."""
