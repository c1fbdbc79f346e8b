"""User names and passwords, which a URI in MLFLOW_TRACKING_URI may have, are for the connection and never shown."""

import re

# Up to the last @ before the path: a password may hold one itself.
_USER_INFO = re.compile(r"(?<=://)[^/\s]*@")


def without_credentials(text: str) -> str:
    """Return a text with the user name and password of every URI in it replaced by ***."""
    return _USER_INFO.sub("***@", text)
