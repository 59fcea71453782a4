"""The training targets and losses of images: roles of anchors and RoIs, tables, pictures and the report."""
