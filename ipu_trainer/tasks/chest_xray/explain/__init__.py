"""Where a model looks: saliency maps, boxes by radiologists, and how often the two agree."""
