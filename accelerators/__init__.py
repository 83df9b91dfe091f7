"""Everything that knows hardware: the runtime, the workers that own it, and how to talk to them."""
