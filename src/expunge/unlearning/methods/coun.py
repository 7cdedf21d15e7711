"""CoUn: classify and contrast retained samples alone (Khalil et al. 2025, arXiv 2509.16391).

Needs labels and a classifier; never sees an unlearn sample.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.unlearning.catalog import CoUnParams, MethodNotForFramework
from expunge.unlearning.frameworks import Contrast, Learner, Supervised
from expunge.unlearning.frameworks.simclr import nt_xent_terms
from expunge.unlearning.methods.base import Batch, SetSizes, UnlearningMethod


class CoUn(UnlearningMethod):
    """Cross-entropy of the first views plus NT-Xent between two views, both of R alone.

    What is public says that contrasting retained samples moves unlearn samples along by their
    likeness to them, while supervised learning keeps retained samples in their clusters. So other
    samples of a class stay negatives here, and the cross-entropy is what makes up for it. NT-Xent
    over the encoder's features, the same augmentation for both views and the defaults are ours.
    """

    uses_unlearn_set: ClassVar[bool] = False
    uses_other_view: ClassVar[bool] = True

    def __init__(self, params: CoUnParams) -> None:
        self.params = params

    def losses(self, learner: Learner, batch: Batch, sizes: SetSizes) -> dict[str, Tensor]:
        """`cross-entropy + contrast_weight * NT-Xent`; both views share one forward pass."""
        del sizes
        if not isinstance(learner, Supervised):
            raise MethodNotForFramework("coun", learner.spec.framework)
        if batch.other is None:
            raise ValueError("CoUn needs other views of retained samples")
        features = learner.features(torch.cat([batch.first, batch.other]))
        logits = learner.classifier(features[: len(batch.first)]).float()
        with torch.autocast(features.device.type, enabled=False):
            retain_loss = F.cross_entropy(logits, batch.second)
            first, other = F.normalize(features, dim=1).chunk(2)
            terms = nt_xent_terms(first, other, self.params.temperature)
            contrastive = Contrast(*terms).mean_loss()
        loss = retain_loss + self.params.contrast_weight * contrastive
        return {"loss": loss, "retain": retain_loss, "contrastive": contrastive}
