"""What the company knows: its catalogue and the specialists' handbooks."""
