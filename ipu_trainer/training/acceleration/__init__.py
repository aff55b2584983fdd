"""What makes training on a GPU fast without changing what is computed; all of it is undone when training ends."""
