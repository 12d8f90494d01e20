"""What the graph calls its inputs and outputs, and every runtime that binds them."""

IDS, POSITIONS, MASK, LOGITS = "input_ids", "position_ids", "attention_mask", "logits"
PAST, PRESENT = "past_key_values.", "present."
"""Of the cache: then the layer, and `.key` or `.value`."""
