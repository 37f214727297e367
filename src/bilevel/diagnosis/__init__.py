"""What a diagnosis is made of: facts measured of the lower level, predictions made of them, the report."""
