"""Images: what they are called, and how one comes to all servers that need it. Built once, the same everywhere."""

from lightship.image.distribute import Distribution, Look, Place, Ready
from lightship.image.names import Wanted, built_name

__all__ = ["Distribution", "Look", "Place", "Ready", "Wanted", "built_name"]
