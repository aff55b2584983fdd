"""What a trained model used of an image: saliency maps, their pointing-game score against boxes, and example predictions."""
