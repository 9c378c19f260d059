"""What commands and programs share: a recorded run, a driven search, a model by its run's key."""
