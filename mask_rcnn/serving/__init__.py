"""Detection over HTTP: the server of ``mask-rcnn serve`` and its page."""
