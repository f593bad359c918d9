"""Training of the subject adapters: one optimizer step after the other, with no cluster and no storage (paper 4.1).

`Learner` is the whole of it for its callers; the modules below are its parts, each usable alone. Importing this
package costs no torch.
"""

from typing import TYPE_CHECKING

from ezigen.lazy import lazy_names
from ezigen.training.report import StepReport, TrainingDiverged

if TYPE_CHECKING:
    from ezigen.training.batch import SOURCES, TrainBatch
    from ezigen.training.conditions import Conditioner, Conditions
    from ezigen.training.draws import Draws, draw, without_dropout
    from ezigen.training.learner import Learner
    from ezigen.training.loss import LossTerms, pair_loss
    from ezigen.training.optimizer import learning_rate
    from ezigen.training.precision import choose_precision

__all__ = [
    "SOURCES",
    "Conditioner",
    "Conditions",
    "Draws",
    "Learner",
    "LossTerms",
    "StepReport",
    "TrainBatch",
    "TrainingDiverged",
    "choose_precision",
    "draw",
    "learning_rate",
    "pair_loss",
    "without_dropout",
]

__getattr__ = lazy_names(
    __name__,
    {
        "SOURCES": "batch",
        "Conditioner": "conditions",
        "Conditions": "conditions",
        "Draws": "draws",
        "Learner": "learner",
        "LossTerms": "loss",
        "TrainBatch": "batch",
        "choose_precision": "precision",
        "draw": "draws",
        "learning_rate": "optimizer",
        "pair_loss": "loss",
        "without_dropout": "draws",
    },
)
