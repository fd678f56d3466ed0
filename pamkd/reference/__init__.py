"""Every operation as a plain PyTorch composition: the oracle in tests, the fallback in use, twice differentiable."""

from pamkd.reference.grs import group_min_similarity as group_min_similarity
from pamkd.reference.grs import grs_hinge as grs_hinge
from pamkd.reference.grs import pairwise_cosine as pairwise_cosine
