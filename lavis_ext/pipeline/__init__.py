"""From fused tokens to an answer."""
