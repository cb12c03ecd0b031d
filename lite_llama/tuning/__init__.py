"""The tuner of the decode chain: what may be tried, how it is searched, timed and told."""
