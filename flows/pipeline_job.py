"""What is looked at before a whole pipeline begins, and what came of it. Needs no Prefect."""

from dataclasses import dataclass

from ezigen.config import ConfigurationError
from flows.job import Summary
from flows.parameters import PairParameters, PipelineParameters
from flows.terminal import out, print_table


@dataclass(frozen=True)
class PipelineSummary(Summary):
    """The stages that came to an end, by what people call them, in their order."""

    stages: tuple[tuple[str, Summary], ...]

    @property
    def stopped(self) -> bool:
        """Whether the pipeline ended early because it was asked to."""
        return any(summary.stopped for _, summary in self.stages)

    def describe(self) -> str:
        """What the last stage made: that is what the pipeline is for."""
        if not self.stages:
            return "nothing was begun"
        title, summary = self.stages[-1]
        return f"{title}: {summary.describe()}"

    def print_details(self) -> None:
        """One line per stage, then what the last one has to say."""
        print_table(("stage", ""), [(title, summary.describe()) for title, summary in self.stages])
        if self.stages:
            out.print("")
            self.stages[-1][1].print_details()


def check_early(parameters: PipelineParameters) -> None:
    """Finds most mistakes within a second, before a server or Ray is started: the data sets and the model.

    Raises ConfigurationError.
    """
    from ezigen.models import model_fingerprint
    from flows import pairs_job
    from flows.planning import read_image_size

    model = parameters.model.model
    model_fingerprint(model)
    if parameters.pairs.size_px != (size_px := read_image_size(model)):
        raise ConfigurationError(
            f"pairs.size_px is {parameters.pairs.size_px}, but model {model} makes pictures of {size_px} px; set "
            f"pairs.size_px={size_px}."
        )
    pairs_job.check_early(PairParameters(parameters.inputs.pair_inputs(), parameters.pairs, parameters.cluster))
