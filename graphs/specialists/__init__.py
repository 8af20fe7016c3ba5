"""The specialists: one file each, and their names here in the order in which callers meet them."""

ROSTER = ("front_desk", "sales", "tech_support")
