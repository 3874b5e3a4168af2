"""What is asked for: a penalty, or a target and what makes a network fit it."""
