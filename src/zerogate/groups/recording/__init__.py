"""The runs of the model, recorded in labels."""
