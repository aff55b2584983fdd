"""Report pages: one HTML file that holds everything it shows, and needs neither a script nor a network to be read."""
