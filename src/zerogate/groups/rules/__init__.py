"""What each ATen op does to labels. An op that has no rule here freezes the labels that enter it."""
