"""One run of the model, recorded in labels."""
