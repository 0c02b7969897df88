"""Building blocks that more than one network family is made of. A block knows shapes and widths, not losses."""
