"""Transfers, the ways in which a better learner teaches a worse one in PAMKD (Sec. 4.5), by name."""

from __future__ import annotations

from pamkd.transfer.embeddings import Embeddings
from pamkd.transfer.grs import GroupRelativeSimilarity
from pamkd.transfer.pairs import Pairs
from pamkd.transfer.pseudo_labels import PseudoLabels
from pamkd.transfer.triplets import Triplets
from pamkd.transfer.weights import EncoderWeights
from pamkd.trilevel.step import Transfer

TRANSFERS: dict[str, type[Transfer]] = {
    "grs": GroupRelativeSimilarity,
    "pl": PseudoLabels,
    "ts": Triplets,
    "ps": Pairs,
    "l2w": EncoderWeights,
    "l2e": Embeddings,
}
