"""Public data sets: where each comes from, what its files must be, and how they become splits."""

from seqapp.data.public.catalogue import PUBLIC, DatasetRow, PublicDataset, describe_datasets, fetch_dataset
from seqapp.data.public.sentiment import Review, parse_tree, read_imdb, read_mr, read_reviews, read_sst
from seqapp.data.public.text import read_names, read_tinyshakespeare, read_wikitext
from seqapp.data.public.translation import read_multi30k

__all__ = [
    "PUBLIC",
    "DatasetRow",
    "PublicDataset",
    "Review",
    "describe_datasets",
    "fetch_dataset",
    "parse_tree",
    "read_imdb",
    "read_mr",
    "read_multi30k",
    "read_names",
    "read_reviews",
    "read_sst",
    "read_tinyshakespeare",
    "read_wikitext",
]
