"""The classifier two-sample test (Lopez-Paz & Oquab 2017): can a classifier tell generated images from real ones?"""

import numpy as np
import torch
from torch import Tensor

from trainers.metrics.checks import pair

MAX_ROWS = 1_000  # of each set
FOLDS = 5
COST = 10.0  # of an image on the wrong side; 1 to 100 tell about as much apart


def told_apart(real_ND: Tensor, fake_MD: Tensor, seed: int) -> Tensor:
    """1.0 where a classifier that has not seen an image says rightly whether it is real, else 0.0; average it.

    Equally many of both sets, drawn by `seed`, 1,000 of each at most, each predicted once by five-fold
    cross-validation: (2n,) float64, with a mean of 0.5 where the sets cannot be told apart and 1 where always. The
    classifier is a support vector machine with a Gaussian kernel on standardised features, so that it also sees
    differences beyond the means. Needs 2 x FOLDS rows of each.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    real_ND, fake_MD = pair(real_ND, fake_MD, rows=2 * FOLDS)
    num = min(len(real_ND), len(fake_MD), MAX_ROWS)
    random = torch.Generator().manual_seed(seed)
    chosen = [x[torch.randperm(len(x), generator=random)[:num]] for x in (real_ND, fake_MD)]
    x_ND, is_real_N = torch.cat(chosen).cpu().numpy(), np.repeat([1, 0], num)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    classifier = make_pipeline(StandardScaler(), SVC(C=COST))
    said_N = cross_val_predict(classifier, x_ND, is_real_N, cv=folds)
    return torch.from_numpy((said_N == is_real_N).astype(np.float64))
