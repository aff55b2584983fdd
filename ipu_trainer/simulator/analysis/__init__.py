"""What a simulated pipeline costs: FLOPs and memory of each stage, bytes on each IPU, and the timeline of a weight update."""
