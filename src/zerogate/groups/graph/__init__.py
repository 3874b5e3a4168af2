"""`keep_class=False`: the model as a graph in which every size is a number that can be set."""
