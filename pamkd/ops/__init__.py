"""The operations, for the search and for anybody's training loop: one file each."""

from pamkd.ops.disturbed_cell import disturbed_cell as disturbed_cell
from pamkd.ops.flat_update import perturb as perturb
from pamkd.ops.flat_update import sgd_update as sgd_update
from pamkd.ops.group_min_similarity import group_min_similarity as group_min_similarity
from pamkd.ops.grs_hinge import grs_hinge as grs_hinge
from pamkd.ops.grs_loss import grs_loss as grs_loss
from pamkd.ops.mixed_cell import mixed_cell as mixed_cell
from pamkd.ops.pairwise_cosine import pairwise_cosine as pairwise_cosine
from pamkd.ops.relu_conv_norm import relu_conv_norm as relu_conv_norm
from pamkd.ops.stencils import stencils as stencils
