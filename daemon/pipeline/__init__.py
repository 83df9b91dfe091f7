"""Pictures and sounds to tensors, tensors to labels, boxes and masks; pure."""
