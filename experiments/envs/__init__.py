"""The worlds of the experiments: small enough that what is to be learned is known exactly."""
