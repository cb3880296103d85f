"""What checks annotations at run time: jaxtyping looks it up by its name."""

import typing

from beartype import BeartypeConf, beartype
from flax.linen.linear import PromoteDtypeFn

# A field of Flax's layers, which those of ours inherit: only so can a value of it be checked.
typing.runtime_checkable(PromoteDtypeFn)
# As for other type checkers, an int is a float, too.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
