"""What checks annotations at run time: jaxtyping looks it up by its name."""

from beartype import BeartypeConf, beartype

# As for other type checkers, an int is a float, too.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
