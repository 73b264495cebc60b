"""From text to resumable numpy batches, equal for every backend."""
