"""Recipe files read aloud: ``recipe list`` and ``recipe show``."""

from largebatch.studies.reading.files import folder_of, listed_as, listing, located, paper_of, recipe_names, table_of
from largebatch.studies.reading.show import (
    as_plot,
    data_facts,
    derived,
    published_words,
    rows_as_table,
    training_examples,
)

__all__ = [
    "as_plot",
    "data_facts",
    "derived",
    "folder_of",
    "listed_as",
    "listing",
    "located",
    "paper_of",
    "published_words",
    "recipe_names",
    "rows_as_table",
    "table_of",
    "training_examples",
]
