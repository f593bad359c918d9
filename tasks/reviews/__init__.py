"""People approve or reject the images of a run before they are published."""

from tasks.reviews.decisions import Applied, Reviews, ReviewState, apply_decisions
from tasks.reviews.page import Review, ReviewRequest, write_review

__all__ = ["Applied", "Review", "ReviewRequest", "ReviewState", "Reviews", "apply_decisions", "write_review"]
