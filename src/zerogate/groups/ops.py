"""What is known of each ATen op, said once: importing this module fills the table `OPS`.

To teach zerogate an op: `declare` it, and where its family has no law that holds for it, write a rule (`rules.op.rule`). The
guide is docs/add_an_op_rule.md.
"""

from __future__ import annotations

from zerogate.groups.declarations import along_dimensions, entry_by_entry, layers, moves, recurrent
from zerogate.groups.declarations.table import OPS, Family, MetaShape, OpSpec, declare, spec_of

DECLARATIONS = (entry_by_entry, moves, along_dimensions, layers, recurrent)

__all__ = ["DECLARATIONS", "OPS", "Family", "MetaShape", "OpSpec", "declare", "spec_of"]
