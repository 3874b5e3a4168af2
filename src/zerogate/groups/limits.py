"""Sizes up to which things are done, and what happens beyond; none of them makes a result wrong, only more cautious."""

KNOWN_VALUE_ENTRIES = 1 << 20
"""Entries up to which values are computed along with a run without data. Beyond, a forward that asks for them makes the
run fail, and it is repeated with data."""

FOLLOWED_MEMORY_ENTRIES = 1 << 22
"""Entries of memory up to which it is noted where channels are written into it. Beyond, these channels stay."""

FOLLOWED_VIEW_ENTRIES = 1 << 21
"""Entries of a parameter up to which it is followed through reshapes and slices. Beyond, channels that meet the result
stay; moves that keep its dimensions apart are followed at every size."""

FOLDED_CONSTANT_ENTRIES = 1 << 20
"""Entries up to which a constant of an exported graph is held as a tensor, which can be sliced as a parameter is.
Beyond (a mask, say), it is made anew by each forward, and channels that meet it stay."""

SORTED_PAIRS = 4096
"""Pairs of labels, tied in one call, up to which repeated ones are kept as they come. Beyond, they are sorted out
first, to save memory; the classes are the same."""

LONGEST_SIZE_LIST = 64
"""Length up to which a tuple or list that a module holds is searched for a size. Longer ones are tables of something
else, and slow to try: a size taken from one counts as written into the forward, and its channels stay."""

DEEPEST_SIZE = 3
"""How many tuples, lists and dicts may lie in each other around a size that a module holds. One that lies deeper counts as
written into the forward."""

MOST_ATTRIBUTES_TRIED = 12
"""Attributes tried for the size of one op. A module with more of the same number mostly holds it for other reasons;
beyond, the op's channels stay."""

MOST_ATTRIBUTES_AT_ONCE = 8
"""Attributes that are set all at once if none alone lets the run go on. More would hit some that must stay as they are;
beyond, the op's channels stay."""

SEEDS_OF_A_TIE = (1, 2, 3)
"""Draws of kept units for which a tie is tried: with one draw a run may diverge further up for another reason, and be
right by chance with others. A tie that none of them gets past the op is undone."""

COMPARED_CONSTANT_ENTRIES = 64
"""Entries of a tensor that a forward makes from Python numbers up to which these are compared between runs. Beyond, it is
taken for a table that holds the same in each."""

WIDTHS_TRIED = 24
"""Draws of single groups by which the widths of a trial run are made to differ. Where they still do not, another run is
made that tells apart what this one could not."""

MOST_RUNS_PASSED = 6
"""Runs that must pass until no two widths could have been mistaken for each other. Beyond, what they agree on is taken for
right, and the compaction that ends `sparsify` has the last word."""

STEPS_BEFORE = 3
"""Steps before the one that diverges in which it is looked first for what must stay: a size may be computed just before.
Where that does not help, it is looked for among all groups."""

MOST_RUNS_FOR_A_LOSS = 64
"""Runs in which the fewest groups that must stay are looked for; beyond, those stay that are left by then."""
