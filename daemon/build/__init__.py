"""The publisher's side: from a trained model to what a bundle holds."""
