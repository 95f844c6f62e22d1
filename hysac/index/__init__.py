"""A searchable folder of images and captions: their points on disk, exact search, redirection of queries."""

from hysac.index.path import Step, redirection_path
from hysac.index.search import POLICIES, Answer, Hit, search
from hysac.index.store import Index

__all__ = ["POLICIES", "Answer", "Hit", "Index", "Step", "redirection_path", "search"]
