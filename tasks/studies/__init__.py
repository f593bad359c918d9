"""Blind preference studies: a page for raters, and what their answers say about the methods."""

from tasks.studies.making import Study, StudyRequest, write_study
from tasks.studies.questions import QUESTIONS, Question, parse_questions
from tasks.studies.results import StudyResults, read_results

__all__ = [
    "QUESTIONS",
    "Question",
    "Study",
    "StudyRequest",
    "StudyResults",
    "parse_questions",
    "read_results",
    "write_study",
]
