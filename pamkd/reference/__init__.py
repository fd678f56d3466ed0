"""Eager compositions of the operations: the oracle in tests, and what runs where no kernel exists. Twice differentiable."""

from pamkd.reference.grs import group_min_similarity as group_min_similarity
from pamkd.reference.grs import grs_hinge as grs_hinge
from pamkd.reference.grs import grs_loss as grs_loss
from pamkd.reference.grs import pairwise_cosine as pairwise_cosine
