"""Gates: random or soft variables z that multiply a unit and can become exactly zero.

A gate is a function of *logits*, one per unit, which live in one flat parameter of the handle that `zerogate.sparsify`
returns. Under every gate a negative logit closes a unit and a positive one opens it.
"""
