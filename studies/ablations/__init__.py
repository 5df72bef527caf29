"""The paper's ablations at a budget of one's own."""
