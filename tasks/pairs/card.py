"""The data card: what is in a set of pairs, as card.json and as a page."""

from tasks.storage import OutputFolder


def write_card(output: OutputFolder) -> str:
    """Writes card.json and card.html beside the pairs and returns the page's location.

    Reads shard by shard: memory does not grow with the number of pairs. Writing it again gives the same card.
    """
    raise NotImplementedError
